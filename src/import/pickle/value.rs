//! The contents of a pickle: values in an arena, which name each other by index.
//!
//! Nothing owns anything else, so that neither depth nor cycles matter: no walk over the values is recursive, dropping
//! them included. A class or a function is only a pair of names, and calling it only a record of the call.

/// The index of a value in its pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(pub(super) u32);

impl Id {
    /// The place among all values of the pickle.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A value; texts are those of the input.
#[derive(Debug)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits: two's complement, little end first.
    Long(&'a [u8]),
    Float(f64),
    Text(&'a str),
    /// Bytes, whose contents nothing asks for.
    Bytes,
    /// A set, likewise.
    Set,
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or a function: the names of a module and of something in it.
    Global(Id, Id),
    Record(Box<Record>),
    /// A value that the pickle leaves to whoever loads it; torch's storages.
    Persistent(Id),
}

// a byte of a pickle can make one
const _: () = assert!(size_of::<Value<'_>>() <= 32);

/// A call that was not made: an object of a class, or the result of a function.
#[derive(Debug)]
pub(crate) struct Record {
    /// The class or function.
    pub(crate) class: Id,
    /// Its arguments; keywords are not kept.
    pub(crate) arguments: Id,
    /// The state that the object is to be filled with, usually a dict of its attributes.
    pub(crate) state: Option<Id>,
    /// The items appended to it, as to a list.
    pub(crate) items: Vec<Id>,
    /// The entries set in it, as in a dict.
    pub(crate) entries: Vec<(Id, Id)>,
}

/// A whole pickle.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    pub(super) values: Vec<Value<'a>>,
    pub(super) root: Id,
}

impl<'a> Pickle<'a> {
    /// The value that was pickled.
    pub(crate) fn root(&self) -> Id {
        self.root
    }

    pub(crate) fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize]
    }

    /// Every value, reached by the root or not.
    pub(crate) fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        (0..self.values.len() as u32).map(Id)
    }

    pub(crate) fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn int(&self, id: Id) -> Option<i64> {
        match self.get(id) {
            Value::Int(i) => Some(*i),
            _ => None,
        }
    }

    /// The items of a tuple or a list.
    pub(crate) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// Module and name of a class or function.
    pub(crate) fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.get(id) {
            Value::Global(module, name) => Some((self.text(*module)?, self.text(*name)?)),
            _ => None,
        }
    }

    pub(crate) fn record(&self, id: Id) -> Option<&Record> {
        match self.get(id) {
            Value::Record(record) => Some(record),
            _ => None,
        }
    }

    /// The entries of a dict or an `OrderedDict`, in their order.
    pub(crate) fn entries(&self, id: Id) -> Option<Vec<(Id, Id)>> {
        match self.get(id) {
            Value::Dict(entries) => Some(entries.clone()),
            Value::Record(record) if self.global(record.class) == Some(("collections", "OrderedDict")) => {
                let mut entries = Vec::new();
                // Python 2 passes the entries as one argument, a list of pairs; more of them could name one
                // list many times
                match self.items(record.arguments)? {
                    [] => {}
                    &[pairs] => {
                        for &pair in self.items(pairs)? {
                            let &[key, value] = self.items(pair)? else { return None };
                            entries.push((key, value));
                        }
                    }
                    _ => return None,
                }
                entries.extend(&record.entries);
                Some(entries)
            }
            _ => None,
        }
    }

    /// The value of a text key in a dict; as in Python, the last one counts.
    pub(crate) fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        self.entries(dict)?.into_iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, value)| value)
    }

    /// Describes a value, for messages.
    pub(crate) fn describe(&self, id: Id) -> String {
        let class = match self.get(id) {
            Value::Record(record) => self.global(record.class),
            Value::Global(..) => self.global(id),
            _ => None,
        };
        match (self.get(id), class) {
            (Value::None, _) => "None".to_owned(),
            (Value::Bool(_), _) => "a bool".to_owned(),
            (Value::Int(_) | Value::Long(_), _) => "an int".to_owned(),
            (Value::Float(_), _) => "a float".to_owned(),
            (Value::Text(_), _) => "a str".to_owned(),
            (Value::Bytes, _) => "bytes".to_owned(),
            (Value::Set, _) => "a set".to_owned(),
            (Value::Tuple(_), _) => "a tuple".to_owned(),
            (Value::List(_), _) => "a list".to_owned(),
            (Value::Dict(_), _) => "a dict".to_owned(),
            (Value::Persistent(_), _) => "a storage".to_owned(),
            (Value::Global(..), Some((module, name))) => format!("the name {module}.{name}"),
            (Value::Record(_), Some((module, name))) => format!("an object of {module}.{name}"),
            (Value::Global(..) | Value::Record(_), None) => "an object".to_owned(),
        }
    }
}
