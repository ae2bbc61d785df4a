//! A restricted reader of Python's pickles: protocols 0 to 5, nothing is imported and nothing is called.
//!
//! A pickle is a program for a stack machine. This one builds an arena of [`Value`]s: GLOBAL pushes a pair of names,
//! REDUCE and its kin push a record of a call, BUILD notes the state of a record. What the values mean is for the
//! caller to say. Memory is a multiple of the bytes read (a value takes 32 bytes and some opcodes have one byte), and
//! there are at most [`MOST_VALUES`] values.

mod argument;
mod value;

use std::collections::HashMap;

use crate::error::ImportError;
use argument::{Cursor, long, quoted, text};
pub(crate) use value::{Id, Pickle, Record, Value};

/// More values than any checkpoint has, and few enough to fit in memory.
const MOST_VALUES: usize = 1 << 22;

/// Values that are the same wherever they occur.
const NONE: Id = Id(0);
const FALSE: Id = Id(1);
const TRUE: Id = Id(2);
const EMPTY_TUPLE: Id = Id(3);

/// Reads the pickle that starts at a byte, and says where it ends.
pub(crate) fn read(input: &[u8], start: usize) -> Result<(Pickle<'_>, usize), ImportError> {
    let mut machine = Machine {
        cursor: Cursor::new(input, start),
        values: vec![Value::None, Value::Bool(false), Value::Bool(true), Value::Tuple(Box::default())],
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        if let Some(root) = machine.step()? {
            return Ok((Pickle { values: machine.values, root }, machine.cursor.at));
        }
    }
}

struct Machine<'a> {
    cursor: Cursor<'a>,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack; nothing below the last of them can be popped.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    /// Runs an opcode; the value of the whole if it was STOP.
    fn step(&mut self) -> Result<Option<Id>, ImportError> {
        self.cursor.opcode = self.cursor.at;
        let opcode = self.cursor.unsigned(1)? as u8;
        match opcode {
            b'N' => self.stack.push(NONE),
            0x88 => self.stack.push(TRUE),
            0x89 => self.stack.push(FALSE),
            b'.' => return self.pop().map(Some), // STOP
            0x80 => self.protocol()?,            // PROTO
            0x95 => drop(self.cursor.bytes(8)?), // FRAME: its length helps to buffer only
            b'(' | b')' | b']' | b'}' | b'l' | b'd' | b't' | 0x85..=0x87 | 0x8f..=0x91 | b'a' | b'e' | b's' | b'u' => {
                self.container(opcode)?;
            }
            b'0' | b'1' | b'2' | b'g' | b'h' | b'j' | b'p' | b'q' | b'r' | 0x94 => self.rearrange(opcode)?,
            b'c' | 0x93 | b'R' | 0x81 | 0x92 | b'b' | b'i' | b'o' | b'P' | b'Q' => self.object(opcode)?,
            _ => self.constant(opcode)?,
        }
        Ok(None)
    }

    fn protocol(&mut self) -> Result<(), ImportError> {
        match self.cursor.unsigned(1)? {
            0..=5 => Ok(()),
            other => Err(self.cursor.error(format!("protocol {other}, expected at most 5"))),
        }
    }

    /// Numbers and texts.
    fn constant(&mut self, opcode: u8) -> Result<(), ImportError> {
        let cursor = &mut self.cursor;
        let value = match opcode {
            b'J' => Value::Int(i64::from(cursor.unsigned(4)? as u32 as i32)), // BININT
            b'K' => Value::Int(cursor.unsigned(1)? as i64),                   // BININT1
            b'M' => Value::Int(cursor.unsigned(2)? as i64),                   // BININT2
            b'I' | b'L' => cursor.integer_line()?,                            // INT, LONG
            0x8a => long(cursor.counted(1)?),                                 // LONG1
            0x8b => long(cursor.counted(4)?),                                 // LONG4
            b'F' => Value::Float(cursor.number()?),                           // FLOAT
            b'G' => Value::Float(f64::from_bits(cursor.unsigned(8)?.swap_bytes())), // BINFLOAT, big end first
            b'X' | b'T' => text(cursor.counted(4)?),                          // BINUNICODE, BINSTRING
            0x8c | b'U' => text(cursor.counted(1)?),                          // SHORT_BINUNICODE, SHORT_BINSTRING
            0x8d => text(cursor.counted(8)?),                                 // BINUNICODE8
            b'V' => text(cursor.line()?),                                     // UNICODE
            b'S' => quoted(cursor.line()?),                                   // STRING
            b'B' => bytes(cursor.counted(4)?),                                // BINBYTES
            b'C' => bytes(cursor.counted(1)?),                                // SHORT_BINBYTES
            0x8e | 0x96 => bytes(cursor.counted(8)?),                         // BINBYTES8, BYTEARRAY8
            other => return Err(cursor.error(format!("unknown opcode 0x{other:02x}"))),
        };
        self.push(value)
    }

    /// Marks, tuples, lists, dicts and sets.
    fn container(&mut self, opcode: u8) -> Result<(), ImportError> {
        match opcode {
            b'(' => self.marks.push(self.stack.len()),   // MARK
            b')' => self.stack.push(EMPTY_TUPLE),        // EMPTY_TUPLE
            b']' => self.push(Value::List(Vec::new()))?, // EMPTY_LIST
            b'}' => self.push(Value::Dict(Vec::new()))?, // EMPTY_DICT
            0x8f => self.push(Value::Set)?,              // EMPTY_SET
            b'l' => {
                // LIST
                let items = self.pop_mark()?;
                self.push(Value::List(items))?;
            }
            b't' => {
                // TUPLE
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items.into()))?;
            }
            b'd' => {
                // DICT
                let entries = self.pop_entries()?;
                self.push(Value::Dict(entries))?;
            }
            0x91 => {
                // FROZENSET
                self.pop_mark()?;
                self.push(Value::Set)?;
            }
            0x85..=0x87 => {
                // TUPLE1, TUPLE2, TUPLE3
                let start = self.reach(usize::from(opcode - 0x84))?;
                let items = self.stack.drain(start..).collect();
                self.push(Value::Tuple(items))?;
            }
            b'a' => {
                // APPEND
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                // APPENDS
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            0x90 => {
                // ADDITEMS
                self.pop_mark()?;
                let target = self.top()?;
                if !matches!(self.values[target.0 as usize], Value::Set | Value::Record(_)) {
                    return Err(self.cursor.error("adds to what is not a set"));
                }
            }
            b's' => {
                // SETITEM
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[(key, value)])?;
            }
            _ => {
                // SETITEMS
                let entries = self.pop_entries()?;
                self.set(&entries)?;
            }
        }
        Ok(())
    }

    /// The stack and the memo.
    fn rearrange(&mut self, opcode: u8) -> Result<(), ImportError> {
        match opcode {
            // POP takes a mark if that is on top
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?), // POP_MARK
            b'2' => {
                // DUP
                let top = self.top()?;
                self.stack.push(top);
            }
            b'g' | b'h' | b'j' => {
                // GET, BINGET, LONG_BINGET
                let index = self.index(opcode)?;
                let found = self.memo.get(&index).copied();
                let id = found.ok_or_else(|| self.cursor.error(format!("nothing is memoised as {index}")))?;
                self.stack.push(id);
            }
            b'p' | b'q' | b'r' => {
                // PUT, BINPUT, LONG_BINPUT
                let index = self.index(opcode)?;
                self.memo.insert(index, self.top()?);
            }
            _ => drop(self.memo.insert(self.memo.len() as u64, self.top()?)), // MEMOIZE
        }
        Ok(())
    }

    /// An index of the memo.
    fn index(&mut self, opcode: u8) -> Result<u64, ImportError> {
        match opcode {
            b'g' | b'p' => self.cursor.number(),
            b'h' | b'q' => self.cursor.unsigned(1),
            _ => self.cursor.unsigned(4),
        }
    }

    /// Names, and calls that are not made.
    fn object(&mut self, opcode: u8) -> Result<(), ImportError> {
        match opcode {
            b'c' => {
                // GLOBAL
                let global = self.global()?;
                self.push(global)
            }
            0x93 => {
                // STACK_GLOBAL
                let name = self.pop()?;
                let module = self.pop()?;
                self.push(Value::Global(module, name))
            }
            b'R' | 0x81 => {
                // REDUCE, NEWOBJ
                let arguments = self.pop()?;
                let class = self.pop()?;
                self.call(class, arguments)
            }
            0x92 => {
                // NEWOBJ_EX
                let _keywords = self.pop()?;
                let arguments = self.pop()?;
                let class = self.pop()?;
                self.call(class, arguments)
            }
            b'i' => {
                // INST
                let global = self.global()?;
                let class = self.add(global)?;
                let arguments = self.pop_mark()?;
                let arguments = self.add(Value::Tuple(arguments.into()))?;
                self.call(class, arguments)
            }
            b'o' => {
                // OBJ
                let mut arguments = self.pop_mark()?.into_iter();
                let class = arguments.next().ok_or_else(|| self.cursor.error("an object without a class"))?;
                let arguments = self.add(Value::Tuple(arguments.collect()))?;
                self.call(class, arguments)
            }
            b'b' => {
                // BUILD
                let state = self.pop()?;
                let target = self.top()?;
                match &mut self.values[target.0 as usize] {
                    Value::Record(record) => record.state = Some(state),
                    _ => return Err(self.cursor.error("gives a state to what is not an object")),
                }
                Ok(())
            }
            b'P' => {
                // PERSID
                let name = text(self.cursor.line()?);
                let name = self.add(name)?;
                self.push(Value::Persistent(name))
            }
            _ => {
                // BINPERSID
                let name = self.pop()?;
                self.push(Value::Persistent(name))
            }
        }
    }

    fn global(&mut self) -> Result<Value<'a>, ImportError> {
        let module = text(self.cursor.line()?);
        let name = text(self.cursor.line()?);
        Ok(Value::Global(self.add(module)?, self.add(name)?))
    }

    fn call(&mut self, class: Id, arguments: Id) -> Result<(), ImportError> {
        let record = Record { class, arguments, state: None, items: Vec::new(), entries: Vec::new() };
        self.push(Value::Record(Box::new(record)))
    }

    fn append(&mut self, items: &[Id]) -> Result<(), ImportError> {
        let target = self.top()?;
        match &mut self.values[target.0 as usize] {
            Value::List(list) => list.extend(items),
            Value::Record(record) => record.items.extend(items),
            _ => return Err(self.cursor.error("appends to what is not a list")),
        }
        Ok(())
    }

    fn set(&mut self, new: &[(Id, Id)]) -> Result<(), ImportError> {
        let target = self.top()?;
        match &mut self.values[target.0 as usize] {
            Value::Dict(entries) => entries.extend(new),
            Value::Record(record) => record.entries.extend(new),
            _ => return Err(self.cursor.error("sets entries of what is not a dict")),
        }
        Ok(())
    }

    /// A value that is not on the stack.
    fn add(&mut self, value: Value<'a>) -> Result<Id, ImportError> {
        if self.values.len() >= MOST_VALUES {
            return Err(self.cursor.error(format!("more than {MOST_VALUES} values")));
        }
        self.values.push(value);
        Ok(Id(self.values.len() as u32 - 1))
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), ImportError> {
        let id = self.add(value)?;
        self.stack.push(id);
        Ok(())
    }

    /// The height of the stack without so many values, none of them below the last mark.
    fn reach(&self, count: usize) -> Result<usize, ImportError> {
        let fence = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= fence);
        start.ok_or_else(|| self.cursor.error("too few values on the stack"))
    }

    fn top(&self) -> Result<Id, ImportError> {
        self.reach(1).map(|at| self.stack[at])
    }

    fn pop(&mut self) -> Result<Id, ImportError> {
        let at = self.reach(1)?;
        let id = self.stack[at];
        self.stack.truncate(at);
        Ok(id)
    }

    /// The values above the last mark, which goes too.
    fn pop_mark(&mut self) -> Result<Vec<Id>, ImportError> {
        let mark = self.marks.pop().ok_or_else(|| self.cursor.error("no mark on the stack"))?;
        Ok(self.stack.split_off(mark))
    }

    fn pop_entries(&mut self) -> Result<Vec<(Id, Id)>, ImportError> {
        let items = self.pop_mark()?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.cursor.error("a key without a value"));
        }
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    }
}

/// Bytes are only skipped.
fn bytes(_: &[u8]) -> Value<'_> {
    Value::Bytes
}
