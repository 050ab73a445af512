//! JSON from strangers.

use crate::BadRequest;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

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
        let deep = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
        assert!(object(deep.as_bytes()).is_err(), "nested beyond what parsers bear");
    }
}
