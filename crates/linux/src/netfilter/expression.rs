//! The expressions of an nftables rule: what it loads into registers, what it compares, what it does.
//!
//! A rule is a list of them (`NFTA_RULE_EXPRESSIONS`); one whose comparison fails ends the rule. Conditions here load into
//! [`REGISTER`] and compare that.

use super::wire::Attributes;

/// The first 32-bit register. An address takes one of them (IPv4) or four (IPv6).
pub const REGISTER: u32 = 8;
/// The register whose value decides where evaluation goes on.
pub const VERDICT: u32 = 0;
/// What a payload's offset counts from: the IP header,
pub const NETWORK_HEADER: u32 = 1;
/// or that of TCP or UDP.
pub const TRANSPORT_HEADER: u32 = 2;
/// The packet's mark (`NFT_META_*`, as those below).
pub const META_MARK: u32 = 3;
/// The name of the link that it came by,
pub const META_IIFNAME: u32 = 6;
/// and that it leaves by.
pub const META_OIFNAME: u32 = 7;
/// Its family, as `NFPROTO_*`.
pub const META_NFPROTO: u32 = 15;
/// The protocol within IP.
pub const META_L4PROTO: u32 = 16;
/// `NFPROTO_IPV4`.
pub const NFPROTO_IPV4: u8 = 2;
/// `NFPROTO_IPV6`.
pub const NFPROTO_IPV6: u8 = 10;

const IFNAMSIZ: usize = 16;

/// How a register's value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The rule goes on when they are equal.
    Equal,
    /// The rule goes on when they differ.
    NotEqual,
}

/// A rule's expressions in the making.
#[derive(Debug, Clone, Default)]
pub struct Expressions(Attributes);

impl Expressions {
    /// As a rule has them.
    pub fn into_attributes(self) -> Attributes {
        self.0
    }

    /// Adds one of the kind `name`.
    pub fn add(&mut self, name: &str, data: Attributes) {
        let expression = Attributes::new().text(1, name).nest(2, data);
        self.0 = std::mem::take(&mut self.0).nest(1, expression);
    }

    /// Loads `length` bytes of the packet from `offset`.
    pub fn payload(&mut self, base: u32, offset: usize, length: usize, register: u32) {
        let data = Attributes::new()
            .u32(1, register)
            .u32(2, base)
            .u32(3, offset as u32)
            .u32(4, length as u32);
        self.add("payload", data);
    }

    /// Loads what the kernel knows of the packet beside its bytes.
    pub fn meta(&mut self, key: u32, register: u32) {
        self.add("meta", Attributes::new().u32(1, register).u32(2, key));
    }

    /// Sets it.
    pub fn set_meta(&mut self, key: u32, register: u32) {
        self.add("meta", Attributes::new().u32(2, key).u32(3, register));
    }

    /// Loads what is known of the packet's connection (`NFT_CT_*`).
    pub fn connection(&mut self, key: u32) {
        self.add("ct", Attributes::new().u32(1, REGISTER).u32(2, key));
    }

    /// Compares with a value.
    pub fn compare(&mut self, comparison: Comparison, value: &[u8]) {
        let operator = match comparison {
            Comparison::Equal => 0,
            Comparison::NotEqual => 1,
        };
        let data = Attributes::new()
            .u32(1, REGISTER)
            .u32(2, operator)
            .nest(3, Attributes::new().bytes(1, value));
        self.add("cmp", data);
    }

    /// Goes on for values from one to another.
    pub fn within(&mut self, first: &[u8], last: &[u8]) {
        const EQUAL: u32 = 0;
        let data = Attributes::new()
            .u32(1, REGISTER)
            .u32(2, EQUAL)
            .nest(3, Attributes::new().bytes(1, first))
            .nest(4, Attributes::new().bytes(1, last));
        self.add("range", data);
    }

    /// Compares the name of a link, by `META_IIFNAME` or `META_OIFNAME`.
    pub fn link(&mut self, key: u32, comparison: Comparison, name: &str) {
        let mut name = name.as_bytes().to_vec();
        name.resize(IFNAMSIZ, 0);
        self.meta(key, REGISTER);
        self.compare(comparison, &name);
    }

    /// Goes on for packets of a family, by its `NFPROTO_*`.
    pub fn family(&mut self, number: u8) {
        self.meta(META_NFPROTO, REGISTER);
        self.compare(Comparison::Equal, &[number]);
    }

    /// Goes on for packets of a protocol.
    pub fn protocol(&mut self, number: u8) {
        self.meta(META_L4PROTO, REGISTER);
        self.compare(Comparison::Equal, &[number]);
    }

    /// Keeps the bits of the mask.
    pub fn mask(&mut self, mask: &[u8]) {
        self.bitwise(mask, &vec![0; mask.len()]);
    }

    /// Keeps the bits of the mask, then turns those of `xor` over. Both have the value's length.
    pub fn bitwise(&mut self, mask: &[u8], xor: &[u8]) {
        let data = Attributes::new()
            .u32(1, REGISTER)
            .u32(2, REGISTER)
            .u32(3, mask.len() as u32)
            .nest(4, Attributes::new().bytes(1, mask))
            .nest(5, Attributes::new().bytes(1, xor));
        self.add("bitwise", data);
    }

    /// Goes on when the value is in a set; with a destination, loads what a map has for it.
    pub fn lookup(&mut self, set: &str, destination: Option<u32>) {
        let data = Attributes::new().text(1, set).u32(2, REGISTER);
        let data = match destination {
            Some(register) => data.u32(3, register),
            None => data,
        };
        self.add("lookup", data);
    }

    /// Loads a value of the rule's own.
    pub fn load(&mut self, register: u32, value: &[u8]) {
        self.immediate(register, Attributes::new().bytes(1, value));
    }

    /// Loads `NFTA_DATA_*`: a value, or a verdict.
    pub fn immediate(&mut self, register: u32, data: Attributes) {
        self.add("immediate", Attributes::new().u32(1, register).nest(2, data));
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::Reader;
    use super::*;

    #[test]
    fn expressions_stand_in_the_order_they_were_added() {
        let mut rule = Expressions::default();
        rule.link(META_IIFNAME, Comparison::NotEqual, "eth0");
        rule.load(VERDICT, &[1]);
        let attributes = rule.into_attributes();
        let names: Vec<_> = Reader::new(attributes.as_slice())
            .map(|(_, expression)| Reader::new(expression).text(1).unwrap())
            .collect();
        assert_eq!(names, ["meta", "cmp", "immediate"]);
        let (_, compare) = Reader::new(attributes.as_slice()).nth(1).unwrap();
        let data = Reader::new(compare).nested(2).unwrap();
        assert_eq!(data.u32(2), Some(1), "differs");
        let value = data.nested(3).unwrap().get(1).unwrap();
        assert_eq!(value, b"eth0\0\0\0\0\0\0\0\0\0\0\0\0");
    }
}
