//! What holds of every table that is read by its content, for the target here and for the mutation loop in
//! tests/library/files/fuzz_data.rs.

use resflow::data::{
    DataError, Decimal, Missing, ModelColumns, ReadOptions, Separator, TextColumns, csv, open_from, read_from,
};

/// Any file: the reader never panics, whatever the options; it makes no more numbers than a compressed file may hold; it
/// explains itself in a few lines; and what it read it reads again from what the writer makes of it. The first byte
/// chooses the options.
pub(crate) fn table(input: &[u8]) -> bool {
    let Some((&choice, bytes)) = input.split_first() else { return false };
    let accepted = read(bytes, &options(choice));
    // whatever is chosen, what is decided alone holds too
    let alone = read(bytes, &ReadOptions::default());
    // and where a stream may hold images, tables are what they were
    match open_from(bytes, &ReadOptions::default()) {
        Ok(opened) => assert!(alone || opened.image_size.is_some()),
        Err(error) => {
            // text that begins as images in IDX do
            let may_be_idx = bytes.first().is_some_and(|first| [0, 0x1f].contains(first));
            assert!(!alone || may_be_idx, "{error}");
            explained(&error);
        }
    }
    alone || accepted
}

fn read(bytes: &[u8], options: &ReadOptions) -> bool {
    match read_from(bytes, options) {
        Ok(reading) => {
            let table = reading.table;
            let most = (bytes.len() * 200).max(4 << 20);
            assert!(table.rows() > 0 && table.values().len() <= most, "{} values", table.values().len());
            assert!(table.values().iter().all(|v| v.is_finite()));
            assert!(reading.dropped.is_sorted());
            for note in &reading.notes {
                let text = note.to_string();
                assert!(text.chars().count() < 1000 * 4 && !text.contains(char::is_control), "{text:?}");
            }
            let indexed = table.columns().is_some_and(|names| names.iter().any(|name| name.starts_with("Unnamed: ")));
            if let Some(categories) = &reading.categories {
                assert!(categories.rows() == table.rows());
                let levels = categories.columns().iter().flat_map(resflow::data::Category::levels);
                assert!(
                    levels.clone().all(|level| !level.is_empty()) && levels.count() <= 2 * bytes.len().max(1 << 20)
                );
            } else {
                assert!(table.width() > 0);
            }
            if table.width() > 0 && table.values().len() < 4096 && !indexed {
                let mut text = Vec::new();
                csv::write(&table, &mut text).expect("memory takes every table");
                assert_eq!(csv::read(&text).expect("the writer's text reads back"), table);
            }
            true
        }
        Err(error) => {
            explained(&error);
            false
        }
    }
}

fn explained(error: &DataError) {
    let message = error.to_string();
    // lists of names come from the file, shortened
    assert!(!message.is_empty() && message.chars().count() < 4000, "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
}

fn options(choice: u8) -> ReadOptions {
    let bit = |i: u8| choice >> i & 1 == 1;
    let names = || Some(vec!["a".to_owned(), "b".to_owned()]);
    ReadOptions {
        separator: [None, Some(Separator::Semicolon), Some(Separator::Blanks), None][usize::from(choice & 3)],
        decimal: bit(2).then_some(Decimal::Comma),
        header: bit(3).then_some(bit(4)),
        missing: if bit(5) { Missing::DropRows } else { Missing::Refuse },
        refuse_constants: bit(5),
        model: bit(6).then(|| ModelColumns {
            names: names(),
            width: 2,
            by_position: bit(7),
            categories: if bit(5) { vec![1] } else { Vec::new() },
            ..ModelColumns::default()
        }),
        text: if bit(1) { TextColumns::Categories } else { TextColumns::Refuse },
        categories: if bit(4) && bit(1) { vec!["b".to_owned()] } else { Vec::new() },
        columns: (bit(7) && !bit(6)).then(names).flatten(),
        ..ReadOptions::default()
    }
}
