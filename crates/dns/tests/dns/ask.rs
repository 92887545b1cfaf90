//! Questions, written and read by a library that is not ours.

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use podnet_core::names::Names;
use podnet_dns::{Context, Outcome, Transport, respond};

/// A question, as it travels.
pub(crate) fn question(name: &str, rtype: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 0x2b1d;
    message.metadata.recursion_desired = true;
    let mut query = Query::query(Name::from_ascii(name).unwrap(), rtype);
    // `from_ascii` keeps the case.
    query.set_name(Name::from_ascii(name).unwrap());
    message.add_query(query);
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// What answers depend on, for names alone.
pub(crate) fn context(names: &Names) -> Context<'_> {
    Context {
        names,
        serial: 7,
        turn: 0,
        searches: &[],
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) message: Message,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn rcode(&self) -> ResponseCode {
        self.message.metadata.response_code
    }

    /// The records of the answer section, as zone files have them.
    pub(crate) fn answers(&self) -> Vec<String> {
        texts(&self.message.answers)
    }

    pub(crate) fn authorities(&self) -> Vec<String> {
        texts(&self.message.authorities)
    }

    pub(crate) fn additionals(&self) -> Vec<String> {
        texts(&self.message.additionals)
    }
}

fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(ToString::to_string).collect()
}

/// Sends bytes and reads what comes back.
pub(crate) fn send(bytes: &[u8], transport: Transport, context: &Context<'_>) -> Answer {
    let mut out = Vec::new();
    let outcome = respond(bytes, transport, context, &mut out);
    assert_ne!(outcome, Outcome::Silence);
    let message = Message::from_vec(&out).unwrap_or_else(|error| panic!("{error}: {out:02x?}"));
    assert_eq!(message.metadata.id.to_be_bytes(), bytes[..2]);
    let bytes = out;
    Answer {
        outcome,
        message,
        bytes,
    }
}

/// Asks over a stream: nothing is left out.
pub(crate) fn ask(names: &Names, name: &str, rtype: RecordType) -> Answer {
    let answer = send(&question(name, rtype, None), Transport::Tcp, &context(names));
    assert!(!answer.message.metadata.truncation);
    answer
}
