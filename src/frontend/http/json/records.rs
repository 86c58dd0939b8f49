//! Records in JSON, on their way in and out, one at a time: as values, many small ones take a hundred times as many bytes as in JSON.

use std::fmt;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use prost::Message;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};

use crate::{
    frontend::{
        http::{give_core_away, too_large},
        status::CallError,
    },
    limits::MESSAGE_BYTES_MAX,
    proto::ringlog::v1 as proto,
};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Records of a body that are read before others may have the core.
const RECORDS_PER_TURN: usize = 256;

/// Records of a produce, as the `records` fields of a `ProduceRequest`.
#[derive(Debug, Default)]
pub(super) struct RecordsIn {
    encoded: Vec<u8>,
    /// Why the first one that is refused is; the others are not looked at any more.
    refused: Option<CallError>,
}

impl RecordsIn {
    /// The fields.
    ///
    /// # Errors
    /// Of the first record that is refused.
    pub(super) fn into_fields(self) -> Result<Vec<u8>, CallError> {
        match self.refused {
            Some(refused) => Err(refused),
            None => Ok(self.encoded),
        }
    }

    fn push(&mut self, record: RecordIn) -> Result<(), CallError> {
        let record = record_in(record)?;
        let fields = proto::ProduceRequest { records: vec![record], ..Default::default() };
        if self.encoded.len() + fields.encoded_len() > MESSAGE_BYTES_MAX {
            return Err(too_large(MESSAGE_BYTES_MAX));
        }
        fields.encode(&mut self.encoded).expect("a vector takes all bytes");
        Ok(())
    }
}

impl<'de> Deserialize<'de> for RecordsIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RecordsIn, D::Error> {
        struct Records;
        impl<'de> Visitor<'de> for Records {
            type Value = RecordsIn;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of records")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RecordsIn, A::Error> {
                let (mut records, mut count) = (RecordsIn::default(), 0_usize);
                while records.refused.is_none()
                    && let Some(record) = list.next_element()?
                {
                    records.refused = records.push(record).err();
                    count += 1;
                    if count.is_multiple_of(RECORDS_PER_TURN) {
                        give_core_away();
                    }
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(records)
            }
        }
        deserializer.deserialize_seq(Records)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordIn {
    key: Option<String>,
    key_text: Option<String>,
    value: Option<String>,
    value_text: Option<String>,
    #[serde(default)]
    headers: Vec<HeaderIn>,
    #[serde(default)]
    timestamp_us: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderIn {
    name: String,
    value: Option<String>,
    value_text: Option<String>,
}

fn record_in(record: RecordIn) -> Result<proto::Record, CallError> {
    let header = |header: HeaderIn| {
        let value = bytes_in("value", header.value, header.value_text)?;
        Ok(proto::Header { name: header.name, value })
    };
    Ok(proto::Record {
        key: bytes_in("key", record.key, record.key_text)?,
        value: bytes_in("value", record.value, record.value_text)?,
        headers: record.headers.into_iter().map(header).collect::<Result<_, CallError>>()?,
        timestamp_us: record.timestamp_us,
        offset: 0,
    })
}

fn bytes_in(name: &str, base64: Option<String>, text: Option<String>) -> Result<Bytes, CallError> {
    match (base64, text) {
        (None, None) => Ok(Bytes::new()),
        (None, Some(text)) => Ok(text.into()),
        (Some(base64), None) => BASE64.decode(&base64).map(Bytes::from).map_err(|error| {
            let message = format!("{name} is not base64 ({error}); for text use {name}_text");
            CallError::invalid("BASE64_INVALID", message)
        }),
        (Some(_), Some(_)) => {
            let message = format!("{name} and {name}_text are both given; give one of them");
            Err(CallError::invalid("BYTES_GIVEN_TWICE", message))
        }
    }
}

/// Answer to a consume, one record at a time.
#[derive(Debug)]
pub struct ConsumedOut {
    json: Vec<u8>,
    /// Bytes are shown as text where they are.
    text: bool,
}

#[derive(Debug, Serialize)]
struct RecordOut {
    offset: u64,
    timestamp_us: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_text: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<HeaderOut>,
}

#[derive(Debug, Serialize)]
struct HeaderOut {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_text: Option<String>,
}

impl ConsumedOut {
    /// Without a record yet; with `text`, bytes are shown as text where they are.
    pub fn new(text: bool) -> ConsumedOut {
        ConsumedOut { json: br#"{"records":["#.to_vec(), text }
    }

    /// One more record. Returns by how many bytes the answer has grown.
    pub fn push(&mut self, record: proto::Record) -> usize {
        let before = self.json.len();
        if self.json.last() == Some(&b'}') {
            self.json.push(b',');
        }
        let record = record_out(record, self.text);
        serde_json::to_writer(&mut self.json, &record)
            .expect("it has strings and numbers only, and a vector takes all bytes");
        self.json.len() - before
    }

    /// The whole answer.
    pub fn end(self, next_offset: u64, log_start: u64, high_watermark: u64) -> Vec<u8> {
        let ConsumedOut { mut json, .. } = self;
        let numbers =
            format!(r#"],"next_offset":{next_offset},"log_start":{log_start},"high_watermark":{high_watermark}}}"#);
        json.extend_from_slice(numbers.as_bytes());
        json
    }
}

fn record_out(record: proto::Record, text: bool) -> RecordOut {
    // An absent key and an empty one are the same on the wire; a value is always shown.
    let (key, key_text) = if record.key.is_empty() { (None, None) } else { bytes_out(&record.key, text) };
    let (value, value_text) = bytes_out(&record.value, text);
    let header = |header: proto::Header| {
        let (value, value_text) = bytes_out(&header.value, text);
        HeaderOut { name: header.name, value, value_text }
    };
    let headers = record.headers.into_iter().map(header).collect();
    RecordOut { offset: record.offset, timestamp_us: record.timestamp_us, key, key_text, value, value_text, headers }
}

fn bytes_out(bytes: &[u8], text: bool) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(string) if text => (None, Some(string.to_owned())),
        _ => (Some(BASE64.encode(bytes)), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records go out as base64, or as text where they are and it is asked for.
    #[test]
    fn records_out() {
        let record = |value: &'static [u8]| proto::Record {
            value: Bytes::from_static(value),
            offset: 3,
            timestamp_us: 4,
            ..Default::default()
        };
        let json = |text| {
            let mut answer = ConsumedOut::new(text);
            for value in [&b"hi"[..], b"\xff"] {
                answer.push(record(value));
            }
            String::from_utf8(answer.end(5, 0, 7)).unwrap()
        };
        let end = r#""next_offset":5,"log_start":0,"high_watermark":7}"#;
        let second = r#"{"offset":3,"timestamp_us":4,"value":"/w=="}"#;
        let first = r#"{"offset":3,"timestamp_us":4,"value":"aGk="}"#;
        assert_eq!(json(false), format!(r#"{{"records":[{first},{second}],{end}"#));
        let first = r#"{"offset":3,"timestamp_us":4,"value_text":"hi"}"#;
        assert_eq!(json(true), format!(r#"{{"records":[{first},{second}],{end}"#));
        assert_eq!(ConsumedOut::new(true).end(5, 0, 7), format!(r#"{{"records":[],{end}"#).as_bytes());
    }
}
