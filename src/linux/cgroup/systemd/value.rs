//! D-Bus values: how they are sent, and how runc's annotations write them (GVariant's text format). No sockets here.

use anyhow::{Context, Result, bail, ensure};

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Double(f64),
    Text(String),
    Path(String),
    Signature(String),
    Variant(Box<Value>),
    Struct(Vec<Value>),
    /// The signature of the elements, which an empty one cannot show.
    Array(String, Vec<Value>),
}

impl Value {
    pub fn text(text: impl Into<String>) -> Value {
        Value::Text(text.into())
    }

    pub fn bytes(bytes: Vec<u8>) -> Value {
        Value::Array("y".into(), bytes.into_iter().map(Value::Byte).collect())
    }

    pub fn signature(&self) -> String {
        match self {
            Value::Byte(_) => "y".into(),
            Value::Bool(_) => "b".into(),
            Value::I16(_) => "n".into(),
            Value::U16(_) => "q".into(),
            Value::I32(_) => "i".into(),
            Value::U32(_) => "u".into(),
            Value::I64(_) => "x".into(),
            Value::U64(_) => "t".into(),
            Value::Double(_) => "d".into(),
            Value::Text(_) => "s".into(),
            Value::Path(_) => "o".into(),
            Value::Signature(_) => "g".into(),
            Value::Variant(_) => "v".into(),
            Value::Struct(fields) => format!("({})", fields.iter().map(Value::signature).collect::<String>()),
            Value::Array(element, _) => format!("a{element}"),
        }
    }

    /// Appends the value, little-endian. D-Bus specification, "Marshaling": each kind is aligned, counted from the
    /// start of the message, whose header and body both begin at a multiple of eight.
    pub fn encode(&self, out: &mut Vec<u8>) {
        pad(out, alignment(&self.signature()));
        match self {
            Value::Byte(value) => out.push(*value),
            Value::Bool(value) => out.extend(u32::from(*value).to_le_bytes()),
            Value::I16(value) => out.extend(value.to_le_bytes()),
            Value::U16(value) => out.extend(value.to_le_bytes()),
            Value::I32(value) => out.extend(value.to_le_bytes()),
            Value::U32(value) => out.extend(value.to_le_bytes()),
            Value::I64(value) => out.extend(value.to_le_bytes()),
            Value::U64(value) => out.extend(value.to_le_bytes()),
            Value::Double(value) => out.extend(value.to_le_bytes()),
            Value::Text(text) | Value::Path(text) => {
                out.extend((text.len() as u32).to_le_bytes());
                out.extend(text.as_bytes());
                out.push(0);
            }
            Value::Signature(text) => signature(text, out),
            Value::Variant(value) => {
                signature(&value.signature(), out);
                value.encode(out);
            }
            Value::Struct(fields) => fields.iter().for_each(|field| field.encode(out)),
            Value::Array(element, values) => {
                let length = out.len();
                out.extend([0; 4]);
                // Not part of the length, and there for an empty array too.
                pad(out, alignment(element));
                let start = out.len();
                values.iter().for_each(|value| value.encode(out));
                let bytes = (out.len() - start) as u32;
                out[length..length + 4].copy_from_slice(&bytes.to_le_bytes());
            }
        }
    }

    /// A number of seconds as what systemd takes: microseconds.
    pub fn seconds_as_microseconds(&self) -> Result<Value> {
        const M: u64 = 1_000_000;
        let seconds = match *self {
            Value::Double(value) => return Ok(Value::U64((value * M as f64) as u64)),
            Value::Byte(value) => value.into(),
            Value::U16(value) => value.into(),
            Value::U32(value) => value.into(),
            Value::U64(value) => value,
            Value::I16(value) => i64::from(value) as u64,
            Value::I32(value) => i64::from(value) as u64,
            Value::I64(value) => value as u64,
            _ => bail!("not a number"),
        };
        Ok(Value::U64(seconds.wrapping_mul(M)))
    }
}

fn signature(text: &str, out: &mut Vec<u8>) {
    out.push(text.len() as u8);
    out.extend(text.as_bytes());
    out.push(0);
}

pub fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

pub fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'y' | b'g' | b'v') => 1,
        Some(b'n' | b'q') => 2,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 4,
    }
}

/// Reads GVariant text (`true`, `'x'`, `uint64 5`, `@as []`, `[1, 2]`), as far as unit properties need it: no
/// dictionaries and no tuples, which runc's reader does not know either.
pub fn parse(text: &str) -> Result<Value> {
    let mut reader = Reader { rest: text };
    let value = reader.value(None)?;
    reader.skip_blanks();
    ensure!(reader.rest.is_empty(), "unexpected {:?}", reader.rest);
    Ok(value)
}

struct Reader<'a> {
    rest: &'a str,
}

/// GVariant's words for types.
const TYPES: [(&str, &str); 12] = [
    ("boolean", "b"),
    ("byte", "y"),
    ("int16", "n"),
    ("uint16", "q"),
    ("int32", "i"),
    ("uint32", "u"),
    ("int64", "x"),
    ("uint64", "t"),
    ("double", "d"),
    ("string", "s"),
    ("objectpath", "o"),
    ("signature", "g"),
];

impl<'a> Reader<'a> {
    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, sign: char) -> bool {
        self.skip_blanks();
        let rest = self.rest.strip_prefix(sign);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn word(&mut self) -> &'a str {
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    fn value(&mut self, wanted: Option<&str>) -> Result<Value> {
        if self.take('@') {
            let end = self.rest.find(char::is_whitespace).context("a type without a value")?;
            let (named, rest) = self.rest.split_at(end);
            self.rest = rest;
            return self.value(Some(named));
        }
        if self.take('[') {
            return self.array(wanted);
        }
        if self.take('<') {
            let inner = self.value(None)?;
            ensure!(self.take('>'), "unclosed <");
            return of_type(wanted, Value::Variant(inner.into()));
        }
        if self.rest.starts_with(['\'', '"']) {
            return quoted(self.string()?, wanted.unwrap_or("s"));
        }
        let word = self.word();
        if let Some((_, kind)) = TYPES.iter().find(|(name, _)| *name == word) {
            return self.value(Some(kind));
        }
        match word {
            "true" | "false" => of_type(wanted, Value::Bool(word == "true")),
            "" => bail!("unexpected {:?}", self.rest),
            number => self::number(number, wanted),
        }
    }

    fn array(&mut self, wanted: Option<&str>) -> Result<Value> {
        let mut element = match wanted {
            Some(wanted) => {
                Some(wanted.strip_prefix('a').with_context(|| format!("not of type {wanted}"))?.to_owned())
            }
            None => None,
        };
        let mut values = Vec::new();
        while !self.take(']') {
            ensure!(values.is_empty() || self.take(','), "unclosed [");
            let value = self.value(element.as_deref())?;
            element.get_or_insert_with(|| value.signature());
            values.push(value);
        }
        Ok(Value::Array(element.context("an empty array needs a type")?, values))
    }

    fn string(&mut self) -> Result<String> {
        let mut letters = self.rest.char_indices();
        let quote = letters.next().map(|(_, quote)| quote);
        let mut text = String::new();
        while let Some((at, letter)) = letters.next() {
            match letter {
                _ if Some(letter) == quote => {
                    self.rest = &self.rest[at + letter.len_utf8()..];
                    return Ok(text);
                }
                '\\' => match letters.next().map(|(_, letter)| letter) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some(letter @ ('\\' | '\'' | '"')) => text.push(letter),
                    other => bail!("unknown escape {other:?}"),
                },
                letter => text.push(letter),
            }
        }
        bail!("unclosed string")
    }
}

fn of_type(wanted: Option<&str>, value: Value) -> Result<Value> {
    match wanted {
        Some(wanted) if wanted != value.signature() => bail!("not of type {wanted}"),
        _ => Ok(value),
    }
}

fn quoted(text: String, wanted: &str) -> Result<Value> {
    // Its end is a NUL on the wire.
    ensure!(!text.contains('\0'), "a NUL byte");
    match wanted {
        "s" => Ok(Value::Text(text)),
        "o" => Ok(Value::Path(text)),
        "g" => Ok(Value::Signature(text)),
        other => bail!("not of type {other}"),
    }
}

fn number(word: &str, wanted: Option<&str>) -> Result<Value> {
    let whole = || -> Result<i128> {
        let (sign, digits) = match word.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, word.strip_prefix('+').unwrap_or(word)),
        };
        let number = match digits.strip_prefix("0x") {
            Some(digits) => i128::from_str_radix(digits, 16),
            None => digits.parse(),
        };
        Ok(sign * number.with_context(|| format!("{word:?} is not a number"))?)
    };
    let out_of_range = || format!("{word} is out of range");
    let fractional = word.contains('.') || !word.contains('x') && word.contains('e');
    Ok(match wanted.unwrap_or(if fractional { "d" } else { "i" }) {
        "y" => Value::Byte(whole()?.try_into().with_context(out_of_range)?),
        "n" => Value::I16(whole()?.try_into().with_context(out_of_range)?),
        "q" => Value::U16(whole()?.try_into().with_context(out_of_range)?),
        "i" => Value::I32(whole()?.try_into().with_context(out_of_range)?),
        "u" => Value::U32(whole()?.try_into().with_context(out_of_range)?),
        "x" => Value::I64(whole()?.try_into().with_context(out_of_range)?),
        "t" => Value::U64(whole()?.try_into().with_context(out_of_range)?),
        "d" => Value::Double(word.parse().with_context(|| format!("{word:?} is not a number"))?),
        other => bail!("not of type {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_annotations() {
        for (text, want) in [
            ("true", Value::Bool(true)),
            ("5", Value::I32(5)),
            ("-0x10", Value::I32(-16)),
            ("1.5", Value::Double(1.5)),
            ("uint64 18446744073709551615", Value::U64(u64::MAX)),
            ("byte 255", Value::Byte(255)),
            ("@t 7", Value::U64(7)),
            ("'inactive-or-failed'", Value::text("inactive-or-failed")),
            (r#""a\"\n""#, Value::text("a\"\n")),
            ("objectpath '/x'", Value::Path("/x".into())),
            ("['a', 'b']", Value::Array("s".into(), vec![Value::text("a"), Value::text("b")])),
            ("@as []", Value::Array("s".into(), vec![])),
            ("[uint32 1, 2]", Value::Array("u".into(), vec![Value::U32(1), Value::U32(2)])),
            (" <true> ", Value::Variant(Value::Bool(true).into())),
        ] {
            assert_eq!(parse(text).unwrap(), want, "{text}");
        }
        for text in [
            "",
            "[",
            "[]",
            "tru",
            "'x",
            "uint16 70000",
            "@s 5",
            "5 6",
            "byte -1",
            "{'a': 1}",
            "(1, 2)",
            "[1, 'a']",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn values_are_aligned_from_the_start() {
        let mut out = Vec::new();
        let pair = Value::Struct(vec![Value::text("ab"), Value::Variant(Value::U64(5).into())]);
        Value::Array("(sv)".into(), vec![pair]).encode(&mut out);
        let want = [
            &[24, 0, 0, 0, 0, 0, 0, 0][..],
            &[2, 0, 0, 0, b'a', b'b', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(out, want.concat());
        let mut empty = vec![1];
        Value::Array("(sv)".into(), vec![]).encode(&mut empty);
        assert_eq!(empty, [1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn seconds_become_microseconds() {
        assert_eq!(Value::U64(5).seconds_as_microseconds().unwrap(), Value::U64(5_000_000));
        assert_eq!(Value::Double(0.5).seconds_as_microseconds().unwrap(), Value::U64(500_000));
        assert!(Value::text("5").seconds_as_microseconds().is_err());
    }
}
