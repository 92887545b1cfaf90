//! Queueing disciplines: how a link lets packets go. Only the token bucket (`tbf`), which holds a link to a rate.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::{Netlink, NetlinkError, Request, wire};

/// A token bucket at the root of a link: what leaves by the link is held to a rate, and bursts go through as they
/// come for as long as the bucket has tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Index of the link.
    pub link: u32,
    /// Bytes per second.
    pub rate: u64,
    /// What the bucket holds, in bytes.
    pub burst: u32,
    /// Most bytes that wait for tokens; what comes on top is dropped.
    pub limit: u32,
}

// Numbers of include/uapi/linux/rtnetlink.h and pkt_sched.h.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const ETHERNET: u8 = 1;
const ROOT: u32 = u32::MAX;
/// Length of `struct tcmsg`.
const HEADER: usize = 20;
/// Offsets in `struct tc_tbf_qopt`: two rates of 12 bytes, limit, buffer, mtu.
const LIMIT: usize = 24;
const BUFFER: usize = 28;
const PARMS: usize = 36;
/// The kernel counts a bucket in the time its tokens take, in ticks of 64 ns (PSCHED_SHIFT).
const NANOSECONDS_PER_TICK: u128 = 64;
const SECOND: u128 = 1_000_000_000;

impl TokenBucket {
    /// Puts it on the link, in place of the discipline the link has.
    pub fn replace(&self) -> Request<'static> {
        Request::new(
            RouteNetlinkMessage::NewQueueDiscipline(self.message()),
            NLM_F_CREATE | NLM_F_REPLACE,
            format!("shape the link with index {}", self.link),
        )
    }

    fn message(&self) -> TcMessage {
        let mut message = TcMessage::with_index(self.link as i32);
        message.header.parent = TcHandle::ROOT;
        let option = |kind, value: &[u8]| TcOption::Other(DefaultNla::new(kind, value.to_vec()));
        let mut options = vec![option(TCA_TBF_PARMS, &self.parameters())];
        if self.rate > u64::from(u32::MAX) {
            options.push(option(TCA_TBF_RATE64, &self.rate.to_ne_bytes()));
        }
        // What counts for kernels since 3.14; older ones take the time in the parameters.
        options.push(option(TCA_TBF_BURST, &self.burst.to_ne_bytes()));
        message.attributes = vec![TcAttribute::Kind("tbf".into()), TcAttribute::Options(options)];
        message
    }

    fn parameters(&self) -> [u8; PARMS] {
        let mut bytes = [0; PARMS];
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        bytes[1] = ETHERNET;
        bytes[8..12].copy_from_slice(&rate.to_ne_bytes());
        bytes[LIMIT..BUFFER].copy_from_slice(&self.limit.to_ne_bytes());
        let time = u128::from(self.burst) * SECOND / u128::from(self.rate.max(1)) / NANOSECONDS_PER_TICK;
        let ticks = u32::try_from(time).unwrap_or(u32::MAX);
        bytes[BUFFER..BUFFER + 4].copy_from_slice(&ticks.to_ne_bytes());
        bytes
    }

    /// None for what is no token bucket at a root.
    fn read(payload: &[u8]) -> Option<Self> {
        let link = wire::word(payload.get(4..8)?)?;
        if wire::word(payload.get(12..16)?)? != ROOT {
            return None;
        }
        let of = |wanted| wire::attributes(payload, HEADER).find(|(kind, _)| *kind == wanted);
        if wire::text(of(TCA_KIND)?.1)? != "tbf" {
            return None;
        }
        let options = of(TCA_OPTIONS)?.1;
        let option = |wanted| wire::attributes(options, 0).find(|(kind, _)| *kind == wanted);
        let parameters = option(TCA_TBF_PARMS)?.1.get(..PARMS)?;
        let wide =
            option(TCA_TBF_RATE64).and_then(|(_, rate)| Some(u64::from_ne_bytes(rate.try_into().ok()?)));
        let rate = wide.unwrap_or(u64::from(wire::word(&parameters[8..])?));
        let ticks = u128::from(wire::word(&parameters[BUFFER..])?);
        let burst = ticks * NANOSECONDS_PER_TICK * u128::from(rate) / SECOND;
        Some(TokenBucket {
            link,
            rate,
            burst: u32::try_from(burst).unwrap_or(u32::MAX),
            limit: wire::word(&parameters[LIMIT..])?,
        })
    }
}

/// A queueing discipline, as far as it says what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qdisc {
    /// Index of the link.
    pub link: u32,
    /// What kind it is, by the kernel's name for it.
    pub kind: String,
}

impl Qdisc {
    fn read(payload: &[u8]) -> Option<Self> {
        let mut attributes = wire::attributes(payload, HEADER);
        let (_, kind) = attributes.find(|(kind, _)| *kind == TCA_KIND)?;
        Some(Qdisc {
            link: wire::word(payload.get(4..8)?)?,
            kind: wire::text(kind)?,
        })
    }
}

impl Netlink {
    /// All queueing disciplines.
    pub fn qdiscs(&mut self) -> Result<Vec<Qdisc>, NetlinkError> {
        let request = Request::new(
            RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()),
            0,
            "list the queueing disciplines".into(),
        );
        self.dump(&request, Qdisc::read)
    }

    /// The token buckets at links' roots. Their bursts are rounded to what the kernel counts in.
    pub fn token_buckets(&mut self) -> Result<Vec<TokenBucket>, NetlinkError> {
        let request = Request::new(
            RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()),
            0,
            "list the queueing disciplines".into(),
        );
        self.dump(&request, TokenBucket::read)
    }
}
