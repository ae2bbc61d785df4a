//! What is wrong with the cells of a table, all of it in one message.

use std::fmt::{self, Write as _};

use super::data::Place;
use super::text::{Count, Excerpt};

/// What is wrong with a column.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// Cells are empty, or say that a value is missing.
    Missing {
        /// The first of them.
        text: String,
    },
    /// Some cells are no numbers.
    Text {
        /// The first of them.
        text: String,
    },
    /// Most cells are no numbers.
    TextColumn {
        /// The first of them.
        text: String,
    },
    /// The column's type is none of numbers.
    Type {
        /// The type's name.
        name: String,
    },
    /// Words of too many levels for a column of categories.
    Levels {
        /// The levels, as far as they were counted.
        levels: usize,
        /// Whether these are more than any column has.
        beyond: bool,
    },
    /// Values are infinite.
    Infinite {
        /// The first of them.
        value: f64,
    },
    /// All values are the same, which has no density.
    Constant {
        /// The value.
        value: f64,
    },
}

/// One thing that is wrong with a column.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnFault {
    /// The column's number, from one, and its name, as messages show them.
    pub label: String,
    /// What the column is called in [`ReadOptions::drop`](crate::data::ReadOptions::drop): its name, or its number.
    pub handle: String,
    /// What is wrong.
    pub fault: Fault,
    /// The number of its cells with this fault.
    pub count: usize,
    /// The places of the first ones.
    pub places: Vec<Place>,
}

/// All that is wrong with the cells of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct CellFaults {
    /// The faults of the columns, in their order; a column may have several.
    pub columns: Vec<ColumnFault>,
    /// The number of rows.
    pub rows: usize,
    /// The number of rows with a missing value.
    pub incomplete: usize,
}

/// The length beyond which faults are counted and no longer described.
const LONG: usize = 420;
/// The most characters of a description.
const MOST: usize = 560;

impl fmt::Display for CellFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = String::new();
        let of = |wanted: fn(&Fault) -> bool| self.columns.iter().filter(move |c| wanted(&c.fault)).collect::<Vec<_>>();
        let texts = of(|fault| matches!(fault, Fault::TextColumn { .. }));
        let types = of(|fault| matches!(fault, Fault::Type { .. }));
        let constants = of(|fault| matches!(fault, Fault::Constant { .. }));
        let levels = of(|fault| matches!(fault, Fault::Levels { .. }));
        let cells = of(|fault| {
            let whole = matches!(fault, Fault::TextColumn { .. } | Fault::Type { .. } | Fault::Levels { .. });
            !whole && !matches!(fault, Fault::Constant { .. })
        });
        describe_texts(&texts, &mut said)?;
        describe_types(&types, &mut said)?;
        describe_levels(&levels, self.rows, &mut said)?;
        let mut rest = 0;
        for column in &cells {
            if said.len() > LONG {
                rest += 1;
                continue;
            }
            separate(&mut said);
            describe(column, &mut said)?;
        }
        if rest > 0 {
            write!(said, "; {rest} more such faults in other columns")?;
        }
        describe_constants(&constants, &mut said)?;
        // names and cells of a hostile file may be long even when shortened
        let mut characters = said.chars();
        for c in characters.by_ref().take(MOST) {
            f.write_char(c)?;
        }
        if characters.next().is_some() {
            f.write_char('…')?;
        }
        self.remedies(f)
    }
}

fn separate(said: &mut String) {
    if !said.is_empty() {
        said.push_str("; ");
    }
}

fn describe_texts(columns: &[&ColumnFault], said: &mut String) -> fmt::Result {
    let example = |column: &ColumnFault| match (&column.fault, column.places.first()) {
        (Fault::TextColumn { text }, Some(Place::Line { line, .. })) => format!("line {line}: `{}`", Excerpt(text)),
        (Fault::TextColumn { text }, _) => format!("`{}`", Excerpt(text)),
        _ => String::new(),
    };
    match columns {
        [] => Ok(()),
        [only] => write!(said, "{} holds text ({})", only.label, example(only)),
        _ => {
            write!(said, "{} columns hold text: ", columns.len())?;
            many(columns, said, |column| format!(" ({})", example(column)))
        }
    }
}

fn describe_types(columns: &[&ColumnFault], said: &mut String) -> fmt::Result {
    let name = |column: &ColumnFault| match &column.fault {
        Fault::Type { name } => Excerpt(name).to_string(),
        _ => String::new(),
    };
    if columns.is_empty() {
        return Ok(());
    }
    separate(said);
    if let [only] = columns {
        return write!(said, "{} holds no numbers but values of type {}", only.label, name(only));
    }
    write!(said, "{} columns hold no numbers: ", columns.len())?;
    many(columns, said, |column| format!(" ({})", name(column)))
}

fn describe_levels(columns: &[&ColumnFault], rows: usize, said: &mut String) -> fmt::Result {
    let count = |column: &ColumnFault| match column.fault {
        Fault::Levels { levels, beyond: true } => format!("more than {}", levels - 1),
        Fault::Levels { levels, .. } => levels.to_string(),
        _ => String::new(),
    };
    match columns {
        [] => return Ok(()),
        [only] => {
            separate(said);
            write!(said, "{} holds {} different words in {}", only.label, count(only), Count(rows, "row"))?;
        }
        _ => {
            separate(said);
            write!(said, "{} columns hold many different words in {}: ", columns.len(), Count(rows, "row"))?;
            many(columns, said, |column| format!(" ({})", count(column)))?;
        }
    }
    said.push_str(", too many for categories");
    Ok(())
}

fn describe_constants(columns: &[&ColumnFault], said: &mut String) -> fmt::Result {
    match columns {
        [] => return Ok(()),
        [only] => {
            separate(said);
            let Fault::Constant { value } = only.fault else { return Ok(()) };
            write!(said, "{} is {value} in every row", only.label)?;
        }
        _ => {
            separate(said);
            write!(said, "{} columns are the same in every row: ", columns.len())?;
            many(columns, said, |_| String::new())?;
        }
    }
    said.push_str("; a constant column has no density");
    Ok(())
}

/// The first columns by their handles.
fn many(columns: &[&ColumnFault], said: &mut String, more: impl Fn(&ColumnFault) -> String) -> fmt::Result {
    let begin = said.len();
    for (i, column) in columns.iter().enumerate() {
        if said.len() > begin + LONG / 2 {
            return write!(said, " and {} more", columns.len() - i);
        }
        write!(said, "{}`{}`{}", if i > 0 { ", " } else { "" }, Excerpt(&column.handle), more(column))?;
    }
    Ok(())
}

fn describe(column: &ColumnFault, said: &mut String) -> fmt::Result {
    if let Some(place) = column.places.first() {
        write!(said, "{place}: ")?;
    }
    match &column.fault {
        Fault::Missing { text } if text.is_empty() => said.push_str("the cell is empty"),
        Fault::Missing { text } if text.eq_ignore_ascii_case("nan") => said.push_str("the value is NaN"),
        Fault::Missing { text } => write!(said, "`{}` is a missing value", Excerpt(text))?,
        Fault::Text { text } | Fault::TextColumn { text } | Fault::Type { name: text } => {
            write!(said, "`{}` is not a number", Excerpt(text))?;
        }
        Fault::Levels { levels, .. } => write!(said, "one of {levels} different words")?,
        Fault::Infinite { value } | Fault::Constant { value } => write!(said, "the value is {value}")?,
    }
    if column.count > 1 {
        write!(said, ", and {} more like it (", column.count - 1)?;
        for (i, place) in column.places.iter().skip(1).enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            match place {
                Place::Line { line, .. } => write!(said, "{comma}line {line}")?,
                Place::Index { row, .. } => write!(said, "{comma}row {}", row + 1)?,
            }
        }
        said.push_str(if column.count > column.places.len() { ", …)" } else { ")" });
    }
    Ok(())
}

impl CellFaults {
    fn remedies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = |wanted: fn(&Fault) -> bool| self.columns.iter().any(|c| wanted(&c.fault));
        let mut remedies: Vec<String> = Vec::new();
        if any(|fault| matches!(fault, Fault::Text { .. })) {
            let comma = self.columns.iter().any(|c| matches!(&c.fault, Fault::Text { text } if text.contains(',')));
            let how = if comma { "; --decimal , says that decimals stand behind a comma" } else { "" };
            remedies.push(format!("cells hold numbers such as -1.5 or 2e-3, with a point for the decimals{how}"));
        }
        if any(|fault| matches!(fault, Fault::Infinite { .. })) {
            remedies.push("every value must be finite, so replace it or leave the row out".to_owned());
        }
        if any(|fault| matches!(fault, Fault::Missing { .. })) {
            let rows = Count(self.incomplete, "row");
            remedies.push(format!(
                "fill the missing values in, or leave the {rows} out with --missing drop-rows; a fit with --impute learns to fill them in"
            ));
        }
        if any(|fault| matches!(fault, Fault::Levels { beyond: false, .. })) {
            remedies.push("--category COLUMN takes one as categories all the same".to_owned());
        }
        let mut handles: Vec<&str> = Vec::new();
        for column in self.columns.iter().filter(|c| !matches!(c.fault, Fault::Infinite { .. } | Fault::Text { .. })) {
            if !handles.contains(&column.handle.as_str()) {
                handles.push(&column.handle);
            }
        }
        if !handles.is_empty() {
            let list = handles.join(",");
            let plain = list.len() <= 100 && !list.contains(|c: char| c.is_control() || c == '\'');
            let simple = |c: char| c.is_alphanumeric() || "_-.,".contains(c);
            remedies.push(match (plain, list.chars().all(simple), handles.len()) {
                (true, true, _) => format!("--drop {list} leaves {} out", them(handles.len())),
                (true, false, _) => format!("--drop '{list}' leaves {} out", them(handles.len())),
                (false, ..) => "--drop COLUMN,COLUMN leaves columns out, --columns COLUMN,COLUMN chooses".to_owned(),
            });
        }
        write!(f, ": {}", remedies.join("; "))
    }
}

fn them(columns: usize) -> &'static str {
    if columns == 1 { "the column" } else { "these columns" }
}
