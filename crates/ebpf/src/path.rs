//! Packets at links: from pod to pod past the host's stack. See `podnet_ebpf_abi::path`.

#![no_std]
#![no_main]

use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_NO_PREALLOC, BPF_NOEXIST, TC_ACT_SHOT, TC_ACT_UNSPEC,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie};
use aya_ebpf::helpers::{
    bpf_csum_update, bpf_get_prandom_u32, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room,
    bpf_skb_pull_data,
};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use podnet_ebpf_abi::Address;
use podnet_ebpf_abi::packet::{
    Bytes, ETHER_TYPE, ETHERNET, Headers, IPV4, IPV4_CHECKSUM, IPV4_HOPS, IPV6_HOPS, Tuple, Whose,
    checksum_after_hop, ordinary, whose,
};
use podnet_ebpf_abi::path::{
    ACCEPTED, ANY_MISSING, ANY_NOTED, ASKED, Next, Paths, Pod, TRANSLATED, Way, from_node, from_pod,
    from_tunnel, is_noteworthy,
};
use podnet_ebpf_abi::tunnel::{
    Around, INNER_AT, OVERHEAD, Tunnel, UDP_AT, VXLAN_AT, around, can_be_taken_out, inside, is_in,
};

const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

/// This node's pods that no policy is about, by their addresses.
#[btf_map]
static PODS: HashMap<Address, Pod, 4096, SPARSE> = HashMap::new();

/// All pods' ranges, and how to get there.
#[btf_map]
static WAYS: LpmTrie<Address, Way, 65_536> = LpmTrie::new();

/// This node's end of the tunnel; [`Tunnel::NONE`] where there is none.
#[btf_map]
static TUNNEL: Array<Tunnel, 1> = Array::new();

/// Flows that the table translated, as they are after it, by [`Tuple::either`]. Their values say whether a packet came by
/// since the agent looked last.
#[btf_map]
static NOTED: HashMap<Tuple, u32, 262_144, SPARSE> = HashMap::new();

/// What is known of these at once: [`ANY_NOTED`] and [`ANY_MISSING`].
#[btf_map]
static NOTES: Array<u32, 2> = Array::new();

/// TCP connections past the stack, in the direction in which they were begun, and how far they are. There are no more of
/// them than connection tracking has room for on a small node: it may be told of all.
#[btf_map]
static BEGUN: HashMap<Tuple, u32, 65_536, SPARSE> = HashMap::new();

struct Maps;

impl Paths for Maps {
    #[inline(always)]
    fn pod(&self, address: &Address) -> Option<Pod> {
        // SAFETY: copied at once. An entry that is taken out meanwhile may be used again for another pod of this node; a
        // packet that was under way to the one gets the other's addresses as a whole, or is dropped by it.
        unsafe { PODS.get(address) }.copied()
    }

    #[inline(always)]
    fn way(&self, address: &Address) -> Option<Way> {
        const WHOLE: u32 = 128;
        WAYS.get(&Key::new(WHOLE, *address)).copied()
    }

    #[inline(always)]
    fn tunnel(&self) -> Option<Tunnel> {
        TUNNEL
            .get(0)
            .copied()
            .filter(|tunnel| tunnel.port != Tunnel::NONE.port)
    }

    #[inline(always)]
    fn is_translated(&self, ends: &Tuple) -> bool {
        let (Some(any), Some(missing)) = (NOTES.get(ANY_NOTED), NOTES.get(ANY_MISSING)) else {
            return true;
        };
        *missing != 0 || (*any != 0 && NOTED.get_ptr(ends.either()).is_some())
    }

    #[inline(always)]
    fn begin(&self, connection: &Tuple) {
        // Where there is no room, a policy that begins to be about it may cut it. One that is asked for again stays as it is.
        let _ = BEGUN.insert(connection, ASKED, BPF_NOEXIST.into());
    }

    #[inline(always)]
    fn accept(&self, connection: &Tuple) {
        if let Some(how_far) = BEGUN.get_ptr_mut(connection) {
            // SAFETY: a value of the map.
            unsafe { *how_far = ACCEPTED };
        }
    }

    #[inline(always)]
    fn end(&self, connection: &Tuple) {
        let _ = BEGUN.remove(connection);
    }
}

/// The part of a packet that can be read in place.
struct Packet<'a>(&'a TcContext);

impl Bytes for Packet<'_> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let start = self.0.data() + at;
        if start + N > self.0.data_end() {
            return None;
        }
        // SAFETY: within the packet.
        Some(unsafe { core::ptr::read_unaligned(start as *const [u8; N]) })
    }
}

impl Packet<'_> {
    #[inline(always)]
    fn write<const N: usize>(&self, at: usize, bytes: [u8; N]) -> Option<()> {
        let start = self.0.data() + at;
        if start + N > self.0.data_end() {
            return None;
        }
        // SAFETY: within the packet.
        unsafe { core::ptr::write_unaligned(start as *mut [u8; N], bytes) };
        Some(())
    }

    /// Has it pass a router. `offset` is what has been put around it: nothing, or [`OVERHEAD`].
    #[inline(always)]
    fn hop(&self, headers: &Headers, offset: usize) -> Option<()> {
        /// Of the word with the hop limit in its lower byte, on the wire: what it loses, as the kernel adds up.
        const LOST: u32 = !0x0100;
        let hops = [headers.hops - 1];
        if headers.tuple.source.as_v4().is_none() {
            self.write(offset + IPV6_HOPS, hops)?;
            // Where the device has summed up the packet. In IPv4 the header's own checksum makes up for it.
            // SAFETY: the kernel passes a context of this type.
            unsafe { bpf_csum_update(self.0.skb.skb, LOST) };
            return Some(());
        }
        let checksum = self.bytes(offset + IPV4_CHECKSUM)?;
        self.write(offset + IPV4_HOPS, hops)?;
        self.write(offset + IPV4_CHECKSUM, checksum_after_hop(checksum))
    }
}

#[inline(always)]
fn fields(context: &TcContext) -> &__sk_buff {
    // SAFETY: the kernel passes a context of this type.
    unsafe { &*context.skb.skb }
}

/// Headers of a packet for this node's link that is not the stack's business by its Ethernet header already.
#[inline(always)]
fn read(context: &TcContext) -> Option<Headers> {
    /// Of include/uapi/linux/if_packet.h: for this host.
    const PACKET_HOST: u32 = 0;
    if fields(context).pkt_type != PACKET_HOST || fields(context).vlan_present != 0 {
        return None;
    }
    ordinary(&Packet(context))
}

/// How long a packet is from its network header on, in bytes; `offset` is what is around it.
#[inline(always)]
fn carried(context: &TcContext, offset: usize) -> u32 {
    fields(context).len.saturating_sub((ETHERNET + offset) as u32)
}

#[inline(always)]
fn largest(context: &TcContext, headers: &Headers, offset: usize) -> u32 {
    headers.largest(fields(context).gso_size, carried(context, offset))
}

/// Has all headers that are read be where they can be, if not so many bytes are there already. What is there is mostly the
/// headers, and all of them, so that nothing is moved.
#[inline(always)]
fn pull(context: &TcContext, least: usize) {
    /// All that is read of a packet at most, if there is so much.
    const HEADERS: u32 = 256;
    let (here, length) = (context.data_end() - context.data(), fields(context).len);
    if here < least && here < length as usize {
        // SAFETY: the kernel passes a context of this type.
        unsafe { bpf_skb_pull_data(context.skb.skb, if length < HEADERS { length } else { HEADERS }) };
    }
}

/// Hands a packet on; none where the stack has to.
#[inline(always)]
fn hand_on(context: &TcContext, headers: &Headers, next: Next) -> Option<i32> {
    let packet = Packet(context);
    match next {
        Next::Stack => None,
        Next::Pod(pod) => hand_to(context, headers, &pod),
        Next::Node(way) => {
            packet.hop(headers, 0)?;
            let mut router = router(&way);
            let length = size_of::<bpf_redir_neigh>() as i32;
            // SAFETY: the helper copies what it is pointed to.
            Some(unsafe { bpf_redirect_neigh(way.link, &mut router, length, 0) } as i32)
        }
        Next::Tunnel(way) => encapsulate(context, headers, &way),
    }
}

/// Hands a packet to a pod of this node.
#[inline(always)]
fn hand_to(context: &TcContext, headers: &Headers, pod: &Pod) -> Option<i32> {
    let packet = Packet(context);
    packet.hop(headers, 0)?;
    packet.write(0, pod.mac)?;
    packet.write(6, pod.gateway)?;
    // SAFETY: takes numbers.
    Some(unsafe { bpf_redirect_peer(pod.link, 0) } as i32)
}

/// Hands a packet on to another node in the tunnel.
#[inline(always)]
fn encapsulate(context: &TcContext, headers: &Headers, way: &Way) -> Option<i32> {
    // What is cut into pieces later is cut inside, and its pieces get these headers each: they are as large as they may be.
    const AROUND: u64 = (BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
        | BPF_F_ADJ_ROOM_ENCAP_L2_ETH
        | BPF_F_ADJ_ROOM_FIXED_GSO) as u64
        | (ETHERNET as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
    // SAFETY: takes nothing.
    let identification = unsafe { bpf_get_prandom_u32() } as u16;
    let around = around(&Maps.tunnel()?, way, headers, carried(context, 0), identification)?;
    // SAFETY: the kernel passes a context of this type.
    let grown = unsafe { bpf_skb_adjust_room(context.skb.skb, OVERHEAD as i32, BPF_ADJ_ROOM_MAC, AROUND) };
    if grown != 0 {
        return None;
    }
    // From here on it is nothing that the stack could make anything of.
    let written =
        write_around(&Packet(context), &around).and_then(|()| Packet(context).hop(headers, OVERHEAD));
    Some(match written {
        // The kernel looks up the next router itself.
        // SAFETY: takes numbers, and no address of a router.
        Some(()) => (unsafe { bpf_redirect_neigh(way.underlay, core::ptr::null_mut(), 0, 0) }) as i32,
        None => TC_ACT_SHOT,
    })
}

#[inline(always)]
fn write_around(packet: &Packet<'_>, around: &Around) -> Option<()> {
    packet.write(ETHER_TYPE, IPV4)?;
    packet.write(ETHERNET, around.ip)?;
    packet.write(UDP_AT, around.udp)?;
    packet.write(VXLAN_AT, around.vxlan)?;
    packet.write(INNER_AT, around.ethernet)
}

/// Takes a packet out of the one that it came in, for a pod.
#[inline(always)]
fn decapsulate(context: &TcContext, headers: &Headers, pod: Pod) -> Option<i32> {
    let inner = match headers.tuple.source.as_v4() {
        Some(_) => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
        None => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    };
    let flags = (BPF_F_ADJ_ROOM_FIXED_GSO | inner) as u64;
    // SAFETY: the kernel passes a context of this type.
    let shrunk = unsafe { bpf_skb_adjust_room(context.skb.skb, -(OVERHEAD as i32), BPF_ADJ_ROOM_MAC, flags) };
    if shrunk != 0 {
        return None;
    }
    let handed_on = Packet(context)
        .write(ETHER_TYPE, headers.ether_type())
        .and_then(|()| hand_to(context, headers, &pod));
    Some(handed_on.unwrap_or(TC_ACT_SHOT))
}

#[inline(always)]
fn router(way: &Way) -> bpf_redir_neigh {
    const AF_INET: u32 = 2;
    const AF_INET6: u32 = 10;
    let Address(octets) = way.router;
    let word = |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
    match way.router.as_v4() {
        Some(_) => bpf_redir_neigh {
            nh_family: AF_INET,
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
                // The rest of the union is handed to the kernel as well.
                ipv6_nh: [word(12), 0, 0, 0],
            },
        },
        None => bpf_redir_neigh {
            nh_family: AF_INET6,
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
                ipv6_nh: [word(0), word(4), word(8), word(12)],
            },
        },
    }
}

/// At the node's end of a pod's link, on what the pod sends.
#[classifier]
pub fn pod_sends(context: TcContext) -> i32 {
    let link = fields(&context).ifindex;
    let handed_on = read(&context).and_then(|headers| {
        let next = from_pod(&Maps, link, &headers, largest(&context, &headers, 0));
        hand_on(&context, &headers, next)
    });
    handed_on.unwrap_or(TC_ACT_UNSPEC)
}

/// At a link to other nodes, on what comes from there.
#[classifier]
pub fn node_sends(context: TcContext) -> i32 {
    /// Of TCP over IPv4, without options. Of other protocols that are led anywhere it is hardly less.
    const LEAST: usize = 54;
    pull(&context, LEAST);
    let link = fields(&context).ifindex;
    let handed_on = read(&context).and_then(|headers| {
        let tunnel = Maps.tunnel().filter(|tunnel| is_in(&headers, tunnel));
        let inside = tunnel.and_then(|tunnel| {
            pull(&context, OVERHEAD + LEAST);
            inside(&Packet(&context), &headers, &tunnel)
        });
        match inside {
            Some(inner) => {
                if !can_be_taken_out(&inner, fields(&context).gso_size) {
                    return None;
                }
                let largest = largest(&context, &inner, OVERHEAD);
                let pod = from_tunnel(&Maps, link, &headers.tuple.source, &inner, largest)?;
                decapsulate(&context, &inner, pod)
            }
            None => {
                let next = from_node(&Maps, link, &headers, largest(&context, &headers, 0));
                hand_on(&context, &headers, next)
            }
        }
    });
    handed_on.unwrap_or(TC_ACT_UNSPEC)
}

/// At both, on what leaves the stack.
#[classifier]
pub fn stack_sends(context: TcContext) -> i32 {
    let mark = fields(&context).mark;
    if mark & TRANSLATED != 0 {
        // SAFETY: the kernel passes a context of this type.
        unsafe { (*context.skb.skb).mark = mark & !TRANSLATED };
        note(&context);
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn note(context: &TcContext) {
    let mut found = whose(&Packet(context));
    if found == Whose::Unreadable {
        pull(context, usize::from(u16::MAX));
        found = whose(&Packet(context));
    }
    let is_noted = match found {
        Whose::Nobodys => return,
        Whose::Flow(flow) if !is_noteworthy(&Maps, &flow) => return,
        Whose::Flow(flow) => put(&flow.either()),
        Whose::Unreadable => false,
    };
    say(ANY_NOTED);
    if !is_noted {
        say(ANY_MISSING);
    }
}

#[inline(always)]
fn say(what: u32) {
    if let Some(said) = NOTES.get_ptr_mut(what) {
        // SAFETY: a value of the map.
        unsafe { *said = 1 };
    }
}

/// Notes a flow; says whether there was room.
#[inline(always)]
fn put(flow: &Tuple) -> bool {
    match NOTED.get_ptr_mut(flow) {
        Some(seen) => {
            // SAFETY: a value of the map.
            unsafe { *seen = 1 };
            true
        }
        None => NOTED.insert(flow, 1, BPF_NOEXIST.into()).is_ok() || NOTED.get_ptr(flow).is_some(),
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses what could come here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
