//! A table that is written, column by column, and as CSV.

use resflow::data::{Categories, Category};

/// A column under its name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) cells: Cells,
}

/// What a column holds; a row without a value has NaN or nothing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cells {
    Numbers(Vec<f64>),
    Counts(Vec<Option<usize>>),
    Words(Vec<Option<String>>),
}

impl Column {
    pub(crate) fn new(name: &str, cells: Cells) -> Self {
        Self { name: name.to_owned(), cells }
    }

    /// The columns of values that stand row by row.
    pub(crate) fn of_rows(names: &[String], values: &[f64]) -> Vec<Self> {
        let numbers = |place: usize| values.iter().skip(place).step_by(names.len()).copied().collect();
        names.iter().enumerate().map(|(place, name)| Self::new(name, Cells::Numbers(numbers(place)))).collect()
    }
}

/// The columns of numbers that stand row by row, and of categories in their places among them.
pub(crate) fn columns_with(names: &[String], values: &[f64], categories: Option<&Categories>) -> Vec<Column> {
    let mut numbers = Column::of_rows(names, values).into_iter();
    let Some(categories) = categories else { return numbers.collect() };
    let mut columns = Vec::new();
    for before in 0..=names.len() {
        let here = |column: &Category| column.place().min(names.len()) == before;
        for (j, column) in categories.columns().iter().enumerate().filter(|(_, column)| here(column)) {
            let words = (0..categories.rows()).map(|i| Some(categories.level(i, j).to_owned())).collect();
            columns.push(Column::new(column.name(), Cells::Words(words)));
        }
        columns.extend(numbers.next());
    }
    columns
}

impl Cells {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Numbers(cells) => cells.len(),
            Self::Counts(cells) => cells.len(),
            Self::Words(cells) => cells.len(),
        }
    }

    /// Puts cells without a value where rows of the file were left out, so that its rows are those of what is written.
    pub(crate) fn with_rows(self, dropped: &[usize]) -> Self {
        match self {
            Self::Numbers(cells) => Self::Numbers(spread(cells, dropped, || f64::NAN)),
            Self::Counts(cells) => Self::Counts(spread(cells, dropped, || None)),
            Self::Words(cells) => Self::Words(spread(cells, dropped, || None)),
        }
    }

    /// A cell as CSV.
    fn text(&self, row: usize) -> String {
        match self {
            // `{:?}` is the shortest text that reads back as the same number
            Self::Numbers(cells) => format!("{:?}", cells[row]),
            Self::Counts(cells) => cells[row].map_or_else(none, |count| count.to_string()),
            Self::Words(cells) => cells[row].as_deref().map_or_else(none, quoted),
        }
    }
}

fn none() -> String {
    "NaN".to_owned()
}

/// Puts what stands for nothing where rows were left out, whose numbers increase.
fn spread<T>(cells: Vec<T>, dropped: &[usize], nothing: impl Fn() -> T) -> Vec<T> {
    let mut gone = dropped.iter().copied().peekable();
    let mut all = Vec::with_capacity(cells.len() + dropped.len());
    for cell in cells {
        while gone.next_if_eq(&all.len()).is_some() {
            all.push(nothing());
        }
        all.push(cell);
    }
    all.extend(gone.map(|_| nothing()));
    all
}

/// Columns of one length as CSV.
pub(crate) fn csv(columns: &[Column]) -> String {
    // names that could be numbers are told from a row of them by their quotes
    let always = columns.iter().any(|column| column.name.parse::<f64>().is_ok());
    let name = |name: &str| if always { format!("\"{}\"", name.replace('"', "\"\"")) } else { quoted(name) };
    line(columns.iter().map(|column| name(&column.name)).collect()) + &csv_rows(columns)
}

/// The same below their names.
pub(crate) fn csv_rows(columns: &[Column]) -> String {
    let rows = columns.first().map_or(0, |column| column.cells.len());
    (0..rows).map(|row| line(columns.iter().map(|column| column.cells.text(row)).collect())).collect()
}

fn line(cells: Vec<String>) -> String {
    cells.join(",") + "\n"
}

/// A text as a cell of CSV.
fn quoted(text: &str) -> String {
    let plain = !text.is_empty() && !text.contains([',', '"', '\n', '\r']) && text.trim() == text;
    if plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_were_left_out_have_nothing() {
        assert_eq!(spread(vec![1, 2], &[0, 2, 4, 5], || 0), [0, 1, 0, 2, 0, 0]);
        assert_eq!(spread(vec![1, 2], &[], || 0), [1, 2]);
        let columns = [
            Column::new("log_prob", Cells::Numbers(vec![-1.0, 0.1])),
            Column::new("outlier", Cells::Counts(vec![Some(0), Some(1)])),
            Column::new("class", Cells::Words(vec![Some("a, b".to_owned()), Some("c".to_owned())])),
        ];
        let columns = columns.map(|column| Column { cells: column.cells.with_rows(&[1]), ..column });
        let rows = "-1.0,0,\"a, b\"\nNaN,NaN,NaN\n0.1,1,c\n";
        assert_eq!((csv(&columns), csv_rows(&columns)), (format!("log_prob,outlier,class\n{rows}"), rows.to_owned()));
    }

    #[test]
    fn rows_become_columns() {
        let columns = Column::of_rows(&["a".to_owned(), "b".to_owned()], &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(columns[1], Column::new("b", Cells::Numbers(vec![2.0, 4.0])));
    }
}
