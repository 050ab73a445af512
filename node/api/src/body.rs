//! JSON from strangers.

use crate::BadRequest;
use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::marker::PhantomData;

/// Parses a JSON body into its type.
///
/// # Errors
/// [`BadRequest`] with the place and the reason.
pub fn json<'t, T: Deserialize<'t>>(bytes: &'t [u8]) -> Result<T, BadRequest> {
    serde_json::from_slice(bytes).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "has the wrong form",
            _ => "is not JSON",
        };
        // The parser's words name types and places, and short values of the client's own.
        BadRequest::new(format!("The request's body {what}: {error}."))
    })
}

/// A record that has to be written as an object; serde takes arrays of its members too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Record<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Record<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Record<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Record)
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

/// Parses a JSON body that is an object into its type.
///
/// # Errors
/// [`BadRequest`] with the place and the reason.
pub fn record<'t, T: Deserialize<'t>>(bytes: &'t [u8]) -> Result<T, BadRequest> {
    json::<Record<T>>(bytes).map(|record| record.0)
}

/// Checks that a body is a JSON object, without building it; an empty one counts as `{}`.
///
/// # Errors
/// [`BadRequest`].
pub fn object(bytes: &[u8]) -> Result<&[u8], BadRequest> {
    struct Object;
    impl<'de> Visitor<'de> for Object {
        type Value = Object;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object with the parameters")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(Object)
        }
    }
    impl<'de> Deserialize<'de> for Object {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Object)
        }
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(b"{}");
    }
    // An action gets these bytes as they are: they have to be text.
    std::str::from_utf8(bytes).map_err(|_| BadRequest::new("The request's body is not UTF-8."))?;
    json::<Object>(bytes).map(|_| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_are_parameters() {
        for good in ["", " \n", "{}", " {\"a\":[1,{\"b\":null}]} "] {
            assert!(object(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in ["[]", "1", "null", "\"x\"", "{", "{}}", "{\"a\"}", "{'a':1}", "\u{feff}{}", "{\"a\":1,}"]
        {
            assert!(object(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(object(b"{\"a\":\"\xff\"}").is_err());
        // Nothing here recurses, so depth costs no stack.
        let deep = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
        assert!(object(deep.as_bytes()).is_ok());
    }

    #[test]
    fn records_are_objects() {
        #[derive(Deserialize, Debug)]
        struct Two {
            a: u8,
            b: Box<serde_json::value::RawValue>,
        }
        let two: Two = record(br#"{"b": [1.0], "a": 7}"#).unwrap();
        assert_eq!((two.a, two.b.get()), (7, "[1.0]"));
        assert!(record::<Two>(br#"[7, [1.0]]"#).is_err() && record::<Two>(b"null").is_err());
    }
}
