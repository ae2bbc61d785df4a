//! The base density of a flow, as configurations name it.
//!
//! As text: `normal` | `mixture:components=8,covariance=full|diagonal` | `student-t`; what is left out has its default. In
//! serialised form a name, a table `{ mixture = { components = 8, covariance = "full" } }`, or such a text.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::count;
use crate::error::ConfigError;
use crate::stage::Size;

/// The forms that a text may have.
const FORMS: &str = "normal, mixture:components=…,covariance=full|diagonal, or student-t";

/// No honest mixture has more components.
const MOST_COMPONENTS: usize = 1000;

/// The covariances of a mixture's components.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Covariance {
    /// Any covariance: d (d + 1)/2 numbers.
    #[default]
    Full,
    /// Columns that are independent within a component: d numbers.
    Diagonal,
}

impl Covariance {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Diagonal => "diagonal",
        }
    }
}

impl fmt::Display for Covariance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The size of a mixture of Gaussians.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixtureConfig {
    /// K, the number of components, 1 to 1000.
    pub components: usize,
    /// Their covariances.
    pub covariance: Covariance,
}

impl Default for MixtureConfig {
    fn default() -> Self {
        Self { components: 8, covariance: Covariance::Full }
    }
}

impl MixtureConfig {
    /// Counts the numbers of one component's factor in d dimensions: d², or d of a diagonal.
    pub fn factor_numbers(&self, dimension: usize) -> usize {
        match self.covariance {
            Covariance::Full => dimension.saturating_mul(dimension),
            Covariance::Diagonal => dimension,
        }
    }
}

/// The base density of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BaseConfig {
    /// N(0, I).
    #[default]
    Normal,
    /// A mixture of Gaussians, trained with the flow.
    Mixture(MixtureConfig),
    /// Student's t in every column, the degrees of freedom trained with the flow.
    StudentT,
}

impl BaseConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns [`ConfigError::OutOfRange`] for a mixture of no components or of more than 1000.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::Mixture(mixture) => count("components", mixture.components, MOST_COMPONENTS, "1 to 1000"),
            Self::Normal | Self::StudentT => Ok(()),
        }
    }

    /// Counts the numbers that the base stores in d dimensions.
    pub fn size(&self, dimension: usize) -> Size {
        let numbers = match self {
            Self::Normal => return Size::default(),
            Self::Mixture(mixture) => {
                let component = (mixture.factor_numbers(dimension) as u64).saturating_add(dimension as u64 + 1);
                component.saturating_mul(mixture.components as u64)
            }
            Self::StudentT => dimension as u64,
        };
        let tensors = if *self == Self::StudentT { 1 } else { 3 };
        Size { parameters: numbers, tensors, ..Size::default() }
    }

    /// Counts the numbers of a sample that a gradient keeps alive: the whitened sample of each component, its product with
    /// the component's share, and a temporary.
    pub(crate) fn activations(&self, dimension: usize) -> usize {
        match self {
            Self::Mixture(mixture) => mixture.components.saturating_mul(dimension).saturating_mul(3),
            Self::Normal | Self::StudentT => 0,
        }
    }

    /// Returns `true` for the standard normal density, which files of before there were others have.
    pub(crate) fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

impl fmt::Display for BaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => f.write_str("normal"),
            Self::StudentT => f.write_str("student-t"),
            Self::Mixture(MixtureConfig { components, covariance }) => {
                write!(f, "mixture:components={components},covariance={covariance}")
            }
        }
    }
}

fn syntax(problem: impl fmt::Display) -> ConfigError {
    ConfigError::Syntax(format!("{problem}; a base is {FORMS}"))
}

impl FromStr for BaseConfig {
    type Err = ConfigError;

    /// ```
    /// use resflow::config::{BaseConfig, Covariance, MixtureConfig};
    /// let base: BaseConfig = "mixture:components=3,covariance=diagonal".parse()?;
    /// assert_eq!(base, BaseConfig::Mixture(MixtureConfig { components: 3, covariance: Covariance::Diagonal }));
    /// assert!("mixture:components=0".parse::<BaseConfig>().is_err());
    /// # Ok::<(), resflow::error::ConfigError>(())
    /// ```
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let kind = kind.trim();
        let mut mixture = MixtureConfig::default();
        let mut seen = Vec::new();
        for pair in rest.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| syntax(format_args!("`{pair}` is not of the form key=value")))?;
            let (key, value) = (key.trim(), value.trim());
            let wrong = || syntax(format_args!("`{value}` is no value for `{key}`"));
            match key {
                _ if seen.contains(&key) => return Err(syntax(format_args!("`{key}` is given twice"))),
                "components" if kind == "mixture" => mixture.components = value.parse().map_err(|_| wrong())?,
                "covariance" if kind == "mixture" => {
                    let all = [Covariance::Full, Covariance::Diagonal];
                    mixture.covariance = all.into_iter().find(|c| c.name() == value).ok_or_else(wrong)?;
                }
                _ => return Err(syntax(format_args!("`{kind}` has no setting `{key}`"))),
            }
            seen.push(key);
        }
        let base = match kind {
            "normal" => Self::Normal,
            "mixture" => Self::Mixture(mixture),
            "student-t" => Self::StudentT,
            other => return Err(syntax(format_args!("there is no base `{other}`"))),
        };
        base.check()?;
        Ok(base)
    }
}

/// The name of a kind, as the serialised form has it.
#[derive(Deserialize)]
#[serde(variant_identifier, rename_all = "kebab-case")]
enum Kind {
    Mixture,
}

impl<'de> Deserialize<'de> for BaseConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;

        impl<'de> Visitor<'de> for Form {
            type Value = BaseConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a base density: a text such as \"normal\", or a table with one entry, `mixture`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<BaseConfig, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BaseConfig, A::Error> {
                let kind =
                    map.next_key()?.ok_or_else(|| A::Error::custom("a base's table has one entry, `mixture`"))?;
                let base = match kind {
                    Kind::Mixture => BaseConfig::Mixture(map.next_value()?),
                };
                match map.next_key::<Kind>()? {
                    None => Ok(base),
                    Some(_) => Err(A::Error::custom("a base's table has one entry, this one has more")),
                }
            }
        }

        deserializer.deserialize_any(Form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_tables_are_read() {
        let table = r#"{"mixture":{"components":3,"covariance":"diagonal"}}"#;
        let text = "mixture: components = 3, covariance = diagonal";
        assert_eq!(serde_json::from_str::<BaseConfig>(table).expect("a table"), text.parse().expect("a text"));
        for base in ["normal", "student-t", "mixture", text] {
            let base: BaseConfig = base.parse().expect("a text");
            assert_eq!(base.to_string().parse::<BaseConfig>().expect("what is shown is read"), base);
            let json = serde_json::to_string(&base).expect("serialises");
            assert_eq!(serde_json::from_str::<BaseConfig>(&json).expect(&json), base);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("gaussian", "no base `gaussian`"),
            ("normal:components=3", "`normal` has no setting `components`"),
            ("mixture:components", "`components` is not of the form key=value"),
            ("mixture:components=many", "`many` is no value for `components`"),
            ("mixture:components=0", "`components` is 0"),
            ("mixture:components=1001", "`components` is 1001"),
            ("mixture:covariance=tied", "`tied` is no value for `covariance`"),
            ("mixture:components=1,components=2", "`components` is given twice"),
        ] {
            let error = text.parse::<BaseConfig>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        for json in [r#"{"mixture":{"components":3,"covariances":"full"}}"#, r#"{"normal":{}}"#, "{}", "3"] {
            assert!(serde_json::from_str::<BaseConfig>(json).is_err(), "{json}");
        }
    }
}
