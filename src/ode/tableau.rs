//! Explicit Runge–Kutta methods by their tableaux:
//!
//! k_i = f(t + c_i h, x + h Σ_{j<i} a_ij k_j),  x' = x + h Σ b_i k_i,  error ≈ h Σ e_i k_i.

/// The numbers of a method.
#[derive(Debug)]
pub(super) struct Tableau {
    /// c.
    pub(super) nodes: &'static [f64],
    /// a, below the diagonal: row i has i numbers.
    pub(super) matrix: &'static [&'static [f64]],
    /// b; stages behind its last number are for the error alone.
    pub(super) weights: &'static [f64],
    /// e = b − b*, of a method that estimates its error.
    pub(super) error: &'static [f64],
}

/// The classical method of order 4 (Kutta 1901).
pub(super) const RK4: Tableau = Tableau {
    nodes: &[0.0, 0.5, 0.5, 1.0],
    matrix: &[&[], &[0.5], &[0.0, 0.5], &[0.0, 0.0, 1.0]],
    weights: &[1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0],
    error: &[],
};

/// The pair of orders 5 and 4 of Dormand and Prince (1980, RK5(4)7M), of which the solution of order 5 goes on. Its last stage is
/// the first of the next step.
pub(super) const DORMAND_PRINCE: Tableau = Tableau {
    nodes: &[0.0, 1.0 / 5.0, 3.0 / 10.0, 4.0 / 5.0, 8.0 / 9.0, 1.0, 1.0],
    matrix: &[
        &[],
        &[1.0 / 5.0],
        &[3.0 / 40.0, 9.0 / 40.0],
        &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
        &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0],
        &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0],
        &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
    ],
    weights: &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
    error: &[71.0 / 57600.0, 0.0, -71.0 / 16695.0, 71.0 / 1920.0, -17253.0 / 339_200.0, 22.0 / 525.0, -1.0 / 40.0],
};
