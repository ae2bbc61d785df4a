//! What must be true of any network: layers, links and whole flows of every family, the estimators, norms and bounds.
#![cfg(feature = "cpu")]

mod bases;
mod block;
mod bottleneck;
mod categories;
mod certificates;
mod check;
mod column_fit;
mod column_flows;
mod columns;
#[path = "../common/mod.rs"]
mod common;
mod conditional;
mod conditional_fits;
mod coupling;
mod decode_gradient;
mod dense;
mod estimator;
mod families;
mod flow;
mod front_door;
mod front_door_tables;
mod image_flows;
mod image_layers;
mod image_links;
mod implicit;
mod large;
mod layers;
mod lipschitz;
mod logistic;
mod matching;
mod measured_law;
mod missing;
mod mixed_norms;
mod mixtures;
mod norms;
mod ode;
mod predictions;
mod products;
mod scores;
mod spline;
mod table_fits;
mod together;
mod traces;
mod variational;
mod weights;
