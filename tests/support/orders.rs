//! Orders as the program's input, and what may be expected of the program for them.

use serde_json::{Value, json};

use crate::chance::Chance;

/// The lines of an input and, in the order of their first line, the ids in them.
#[derive(Clone, Debug)]
pub struct Orders {
    /// One JSON object each, without line ends.
    pub lines: Vec<String>,
    /// Each once.
    pub ids: Vec<String>,
}

impl Orders {
    /// `lines` lines of which `copies` repeat an earlier one, each with these further fields for `effect-worker`.
    pub fn with_copies(lines: usize, copies: usize, fields: &Value, chance: &mut Chance) -> Self {
        let distinct = lines - copies;
        let ids: Vec<_> = (0..distinct).map(|number| format!("order-{number:04}")).collect();
        let mut picked: Vec<usize> = (0..distinct).collect();
        for _ in 0..copies {
            // Behind the line it repeats, wherever that is.
            let number = chance.number(0..distinct);
            let first = picked.iter().position(|other| *other == number).unwrap_or_default();
            let at = chance.number(first + 1..picked.len() + 1);
            picked.insert(at, number);
        }
        let lines = picked.into_iter().map(|number| order(&ids[number], fields)).collect();
        Self { lines, ids }
    }

    /// One line for each id.
    pub fn of<const N: usize>(orders: [(&str, Value); N]) -> Self {
        let ids = orders.iter().map(|(id, _)| (*id).to_owned()).collect();
        Self { lines: orders.iter().map(|(id, fields)| order(id, fields)).collect(), ids }
    }
}

/// One line: the id and further fields.
pub fn order(id: &str, fields: &Value) -> String {
    let mut order = json!({"id": id});
    if let (Some(order), Some(fields)) = (order.as_object_mut(), fields.as_object()) {
        order.extend(fields.clone());
    }
    order.to_string()
}

/// The id of an order.
///
/// # Panics
/// If the payload is no order.
#[must_use]
pub fn id_of(payload: &[u8]) -> String {
    let order: Value = serde_json::from_slice(payload).expect("an order is JSON");
    order["id"].as_str().expect("an id").to_owned()
}
