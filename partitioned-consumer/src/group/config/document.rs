//! An entry that is edited in place: only the membership changes, everything else keeps its bytes.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use super::super::membership::{Membership, MembershipFields};
use crate::error::{Error, ErrorKind};

/// The fields of a JSON object in their order, with their values as they were written.
///
/// Running members written in Go compare the shape of a group by deep equality, in which null and
/// an empty list differ; so an edit must not rewrite what it does not mean to change.
pub(crate) struct Document(Vec<(String, Box<RawValue>)>);

impl Document {
    /// Reads an object.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(json).map_err(|error| {
            ErrorKind::CorruptEntry.caused("the entry is not a JSON object", error)
        })
    }

    /// Replaces the membership; the order of the other fields stays.
    pub(crate) fn set_membership(&mut self, membership: &Membership) {
        self.0.retain(|(name, _)| name != "members" && name != "member_mappings");
        let MembershipFields { members, member_mappings } = MembershipFields::of(membership);
        if !members.is_empty() {
            self.push("members", &members);
        }
        if !member_mappings.is_empty() {
            self.push("member_mappings", &member_mappings);
        }
    }

    /// Replaces the number of partitions where it stands.
    pub(crate) fn set_partitions(&mut self, partitions: u32) {
        let raw = to_raw_value(&partitions).expect("a number serializes");
        match self.0.iter_mut().find(|(name, _)| name == "max_members") {
            Some((_, value)) => *value = raw,
            None => self.0.insert(0, ("max_members".into(), raw)),
        }
    }

    /// The object's text.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("raw values serialize as they are")
    }

    fn push(&mut self, name: &str, value: &impl Serialize) {
        self.0.push((
            name.into(),
            to_raw_value(value).expect("lists of strings and numbers serialize"),
        ));
    }
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Document(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}
