//! Estimators as text, the way the command line and configuration files write them.
//!
//! `exact` | `auto` | `truncated:terms=20,probes=2` | `roulette:law=poisson,rate=2,exact=4`. What is left out has its
//! default. In serialised form an estimator is a table, `{ truncated = { terms = 20 } }`, or such a text.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Auto, Estimator, Exact, Law, Probe, RussianRoulette, Sharing, Traces, Truncated};
use crate::error::ConfigError;

/// The forms that a text may have.
const FORMS: &str = "exact, auto, truncated:terms=…,probes=…,probe=rademacher|gaussian,traces=probed|exact, \
     or roulette:law=geometric,p=…,reach=…|law=poisson,rate=…,exact=…,draws=…,probes=…,probe=rademacher|gaussian,sharing=batch|sample,traces=probed|exact";

fn syntax(problem: impl fmt::Display) -> ConfigError {
    ConfigError::Syntax(format!("{problem}; an estimator is {FORMS}"))
}

/// The `key=value` pairs of a text; every one must be asked for.
struct Settings<'a> {
    kind: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Settings<'a> {
    fn parse(text: &'a str) -> Result<Self, ConfigError> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for pair in rest.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| syntax(format_args!("`{pair}` is not of the form key=value")))?;
            let (key, value) = (key.trim(), value.trim());
            if pairs.iter().any(|(k, _)| *k == key) {
                return Err(syntax(format_args!("`{key}` is given twice")));
            }
            pairs.push((key, value));
        }
        Ok(Self { kind: kind.trim(), pairs })
    }

    fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.pairs.iter().position(|(k, _)| *k == key)?;
        Some(self.pairs.remove(at).1)
    }

    fn number<T: FromStr>(&mut self, key: &str, default: T) -> Result<T, ConfigError> {
        match self.take(key) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| syntax(format_args!("`{text}` is no value for `{key}`"))),
        }
    }

    fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Result<T, ConfigError> {
        let text = self.take(key).unwrap_or(choices[0].0);
        choices
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| syntax(format_args!("`{text}` is no value for `{key}`")))
    }

    fn probe(&mut self) -> Result<Probe, ConfigError> {
        self.choice("probe", &[("rademacher", Probe::Rademacher), ("gaussian", Probe::Gaussian)])
    }

    fn traces(&mut self) -> Result<Traces, ConfigError> {
        self.choice("traces", &[("probed", Traces::Probed), ("exact", Traces::Exact)])
    }

    fn end(self) -> Result<(), ConfigError> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(syntax(format_args!("`{}` has no setting `{key}`", self.kind))),
        }
    }
}

impl FromStr for Estimator {
    type Err = ConfigError;

    /// ```
    /// use resflow::estimator::{Estimator, Law};
    /// let estimator: Estimator = "roulette:law=poisson,rate=2,exact=4".parse()?;
    /// let Estimator::RussianRoulette(roulette) = estimator else { unreachable!() };
    /// assert_eq!((roulette.law, roulette.exact_terms), (Law::Poisson { rate: 2.0 }, 4));
    /// assert!("truncated:terms=0".parse::<Estimator>().is_err());
    /// # Ok::<(), resflow::error::ConfigError>(())
    /// ```
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut settings = Settings::parse(text)?;
        let estimator = match settings.kind {
            "exact" => Self::Exact(Exact),
            "auto" => Self::Auto(Auto::default()),
            "truncated" => Self::Truncated(Truncated {
                terms: settings.number("terms", 20)?,
                probes: settings.number("probes", 1)?,
                probe: settings.probe()?,
                traces: settings.traces()?,
            }),
            "roulette" | "russian-roulette" => {
                let poisson = settings.choice("law", &[("geometric", false), ("poisson", true)])?;
                let law = if poisson {
                    Law::Poisson { rate: settings.number("rate", 2.0)? }
                } else {
                    let p = settings.number("p", 0.5)?;
                    match settings.take("reach") {
                        None => Law::ShiftedGeometric { p },
                        Some(text) => {
                            let reach =
                                text.parse().map_err(|_| syntax(format_args!("`{text}` is no value for `reach`")))?;
                            Law::Geometric { reach, p }
                        }
                    }
                };
                Self::RussianRoulette(RussianRoulette {
                    law,
                    exact_terms: settings.number("exact", 2)?,
                    draws: settings.number("draws", 1)?,
                    probes: settings.number("probes", 1)?,
                    probe: settings.probe()?,
                    sharing: settings.choice("sharing", &[("batch", Sharing::Batch), ("sample", Sharing::Sample)])?,
                    traces: settings.traces()?,
                })
            }
            other => return Err(syntax(format_args!("there is no estimator `{other}`"))),
        };
        settings.end()?;
        estimator.check()?;
        Ok(estimator)
    }
}

/// The name of a kind, as the serialised form has it.
#[derive(Deserialize)]
#[serde(variant_identifier, rename_all = "kebab-case")]
enum Kind {
    Exact,
    Truncated,
    RussianRoulette,
    Auto,
}

impl<'de> Deserialize<'de> for Estimator {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;

        impl<'de> Visitor<'de> for Form {
            type Value = Estimator;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an estimator: a text such as \"exact\", or a table with one entry")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Estimator, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Estimator, A::Error> {
                let kind = map.next_key()?.ok_or_else(|| A::Error::custom("an estimator's table has one entry"))?;
                let estimator = match kind {
                    Kind::Exact => Estimator::Exact(map.next_value()?),
                    Kind::Truncated => Estimator::Truncated(map.next_value()?),
                    Kind::RussianRoulette => Estimator::RussianRoulette(map.next_value()?),
                    Kind::Auto => Estimator::Auto(map.next_value()?),
                };
                match map.next_key::<Kind>()? {
                    None => Ok(estimator),
                    Some(_) => Err(A::Error::custom("an estimator's table has one entry, this one has more")),
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
        let table =
            r#"{"russian-roulette":{"law":{"shifted-geometric":{"p":0.25}},"exact_terms":3,"sharing":"sample"}}"#;
        let text = "roulette: p = 0.25, exact = 3, sharing = sample";
        let expected = serde_json::from_str::<Estimator>(table).expect("a table");
        assert_eq!(text.parse::<Estimator>().expect("a text"), expected);
        for estimator in [
            "exact",
            "auto",
            "truncated:terms=7,probe=gaussian",
            "truncated:traces=exact",
            "roulette:traces=exact",
            "roulette:p=0.25,reach=0.3,exact=0",
            text,
        ] {
            let estimator: Estimator = estimator.parse().expect("a text");
            let json = serde_json::to_string(&estimator).expect("serialises");
            assert_eq!(serde_json::from_str::<Estimator>(&json).expect(&json), estimator);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("exakt", "no estimator `exakt`"),
            ("exact:terms=3", "`exact` has no setting `terms`"),
            ("truncated:terms", "`terms` is not of the form key=value"),
            ("truncated:terms=many", "`many` is no value for `terms`"),
            ("truncated:terms=0", "`terms` is 0"),
            ("roulette:p=1.5", "`p` is 1.5"),
            ("roulette:law=poisson,p=0.5", "no setting `p`"),
            ("roulette:law=poisson,reach=0.5", "no setting `reach`"),
            ("roulette:reach=often", "`often` is no value for `reach`"),
            ("roulette:reach=0", "`reach` is 0"),
            ("roulette:reach=1.5", "`reach` is 1.5"),
            ("roulette:law=binomial", "`binomial` is no value for `law`"),
            ("roulette:exact=1,exact=2", "`exact` is given twice"),
        ] {
            let error = text.parse::<Estimator>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
