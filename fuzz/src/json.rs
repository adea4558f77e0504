//! Mutates JSON as JSON: a byte changed at random is nearly always a syntax error, and then only the reader's first
//! lines are tested. Each function is one half of libFuzzer's `fuzz_mutator!` and `fuzz_crossover!`.

use serde_json::{Map, Value, json};

/// Both for one target.
#[macro_export]
macro_rules! mutate_json {
    () => {
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            $crate::json::mutate(data, size, max_size, seed)
        });
        libfuzzer_sys::fuzz_crossover!(|one: &[u8], two: &[u8], out: &mut [u8], seed: u32| {
            $crate::json::cross(one, two, out, seed)
        });
    };
}

pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = Random(seed);
    // Now and then as bytes, for the syntax itself.
    let document = serde_json::from_slice(&data[..size]).ok().filter(|_| random.below(8) > 0);
    let Some(mut document) = document else { return libfuzzer_sys::fuzzer_mutate(data, size, max_size) };
    for _ in 0..=random.below(3) {
        change(&mut document, &mut random);
    }
    write(&document, &mut data[..max_size])
        .unwrap_or_else(|| libfuzzer_sys::fuzzer_mutate(data, size, max_size))
}

/// The first document with parts of the second; nothing if one of them is no JSON.
pub fn cross(one: &[u8], two: &[u8], out: &mut [u8], seed: u32) -> usize {
    let (Ok(mut document), Ok(other)) = (serde_json::from_slice(one), serde_json::from_slice(two)) else {
        return 0;
    };
    blend(&mut document, &other, &mut Random(seed));
    write(&document, out).unwrap_or(0)
}

fn write(document: &Value, out: &mut [u8]) -> Option<usize> {
    let bytes = serde_json::to_vec(document).ok()?;
    out.get_mut(..bytes.len())?.copy_from_slice(&bytes);
    Some(bytes.len())
}

/// xorshift: what libFuzzer gives is one number.
struct Random(u32);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        let mut x = self.0.wrapping_add(0x9e37_79b9);
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.0 = x;
        x as usize % end
    }
}

fn change(document: &mut Value, random: &mut Random) {
    let size = count(document);
    let other = nth(document, &mut random.below(size)).map(|node| node.clone()).unwrap_or_default();
    let keys = keys(document);
    let Some(node) = nth(document, &mut random.below(size)) else { return };
    match (random.below(6), node) {
        (0, node) => *node = other,
        (1, node) => *node = odd(random),
        (2, Value::Array(items)) if !items.is_empty() => _ = items.remove(random.below(items.len())),
        (2, Value::Object(fields)) if !fields.is_empty() => {
            let key = fields.keys().nth(random.below(fields.len())).cloned().unwrap_or_default();
            fields.remove(&key);
        }
        (_, Value::Array(items)) => items.insert(random.below(items.len() + 1), other),
        (_, Value::Object(fields)) => add(fields, other, &keys, random),
        (_, Value::String(text)) => *text = mutated(text),
        (_, Value::Number(number)) => {
            let near = number.as_i64().map(|n| n.wrapping_add(random.below(3) as i64 - 1));
            *number = near.unwrap_or_default().into();
        }
        (_, node) => *node = odd(random),
    }
}

fn add(fields: &mut Map<String, Value>, value: Value, keys: &[String], random: &mut Random) {
    if !keys.is_empty() {
        let key = &keys[random.below(keys.len())];
        let key = if random.below(4) == 0 { mutated(key) } else { key.clone() };
        fields.insert(key, value);
    }
}

fn mutated(text: &str) -> String {
    let size = text.len();
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(size + 32, 0);
    let size = libfuzzer_sys::fuzzer_mutate(&mut bytes, size, size + 32);
    String::from_utf8_lossy(&bytes[..size]).into_owned()
}

/// Values at the edge of some type or meaning.
fn odd(random: &mut Random) -> Value {
    let all = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(u16::MAX),
        json!(u32::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(0.5),
        json!(""),
        json!("/"),
        json!(".."),
        json!("\0"),
        json!([]),
        json!({}),
    ];
    all[random.below(all.len())].clone()
}

fn blend(one: &mut Value, two: &Value, random: &mut Random) {
    match (one, two) {
        (Value::Object(one), Value::Object(two)) => {
            for (key, value) in two.iter().filter(|_| random.below(2) == 0).collect::<Vec<_>>() {
                match one.get_mut(key) {
                    Some(mine) => blend(mine, value, random),
                    None => _ = one.insert(key.clone(), value.clone()),
                }
            }
        }
        (one, two) => *one = two.clone(),
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        _ => Box::new(std::iter::empty()),
    }
}

fn count(value: &Value) -> usize {
    1 + children(value).map(count).sum::<usize>()
}

fn keys(value: &Value) -> Vec<String> {
    let own = value.as_object().into_iter().flat_map(Map::keys).cloned();
    own.chain(children(value).flat_map(keys)).collect()
}

/// In the order of `count`.
fn nth<'a>(value: &'a mut Value, n: &mut usize) -> Option<&'a mut Value> {
    if *n == 0 {
        return Some(value);
    }
    *n -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, n)),
        Value::Object(fields) => fields.values_mut().find_map(|field| nth(field, n)),
        _ => None,
    }
}
