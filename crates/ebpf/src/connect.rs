//! Hooks of a cgroup: a socket that asks for a service gets an endpoint as its peer. See `podnet_ebpf_abi::connect`.
//!
//! The hooks see every socket of the cgroup's processes, those of other networks' containers as well. So they ask first
//! whether the socket's network namespace is the node's or one of its pods'.

#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, bpf_sock_addr};
use aya_ebpf::btf_maps::{HashMap, LruHashMap};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie};
use aya_ebpf::macros::{btf_map, cgroup_sock_addr};
use aya_ebpf::programs::SockAddrContext;
use podnet_ebpf_abi::connect::{
    Answers, Asked, Balance, Datagrams, Peer, Services, Serving, Slot, answer, connection, datagram,
};
use podnet_ebpf_abi::{Address, Endpoint, Frontend, Protocol};

const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

/// The network namespaces whose sockets are led, by their cookies.
#[btf_map]
static CLIENTS: HashMap<u64, u32, 65_536, SPARSE> = HashMap::new();

/// The services.
#[btf_map]
static BALANCES: HashMap<Frontend, Balance, 262_144, SPARSE> = HashMap::new();

/// Their endpoints.
#[btf_map]
static SLOTS: HashMap<Slot, Endpoint, 2_097_152, SPARSE> = HashMap::new();

/// Of services of UDP, who may get further datagrams.
#[btf_map]
static SERVING: HashMap<Serving, u32, 1_048_576, SPARSE> = HashMap::new();

/// Where datagrams of sockets that are not connected go.
#[btf_map]
static ASKED: LruHashMap<Asked, Endpoint, 65_536> = LruHashMap::new();

/// What the answers to them are answers to.
#[btf_map]
static ANSWERS: LruHashMap<Answers, Endpoint, 65_536> = LruHashMap::new();

/// Whom connected sockets asked for, by socket.
#[btf_map]
static PEERS: LruHashMap<u64, Peer, 65_536> = LruHashMap::new();

struct Maps;

impl Services for Maps {
    #[inline(always)]
    fn balance(&self, frontend: &Frontend) -> Option<Balance> {
        // SAFETY: the value is copied at once. An entry that is taken out meanwhile may be used again for another key; what
        // is read then is a row of that one, as of a state that is just being changed.
        unsafe { BALANCES.get(frontend) }.copied()
    }

    #[inline(always)]
    fn endpoint(&self, slot: &Slot) -> Option<Endpoint> {
        // SAFETY: as above.
        unsafe { SLOTS.get(slot) }.copied()
    }

    #[inline(always)]
    fn serves(&self, serving: &Serving) -> bool {
        SERVING.get_ptr(serving).is_some()
    }
}

impl Datagrams for Maps {
    #[inline(always)]
    fn chosen(&self, asked: &Asked) -> Option<Endpoint> {
        // SAFETY: as above; `datagram` compares with what answers say.
        unsafe { ASKED.get(asked) }.copied()
    }

    #[inline(always)]
    fn choose(&self, asked: &Asked, endpoint: Endpoint) -> bool {
        let answers = Answers::new(asked.socket, endpoint);
        ANSWERS
            .insert(answers, asked.frontend.socket(), BPF_ANY.into())
            .is_ok()
            && ASKED.insert(asked, endpoint, BPF_ANY.into()).is_ok()
    }

    #[inline(always)]
    fn asked(&self, answers: &Answers) -> Option<Endpoint> {
        // SAFETY: as above.
        unsafe { ANSWERS.get(answers) }.copied()
    }

    #[inline(always)]
    fn forget(&self, answers: &Answers) {
        // Who has forgotten it already has.
        let _ = ANSWERS.remove(answers);
    }
}

/// A call of a socket.
struct Call(SockAddrContext);

impl Call {
    #[inline(always)]
    fn fields(&mut self) -> &mut bpf_sock_addr {
        // SAFETY: the kernel passes a context of this type.
        unsafe { &mut *self.0.sock_addr }
    }

    /// Whether it is of the node or one of its pods.
    #[inline(always)]
    fn is_ours(&self) -> bool {
        // SAFETY: the helper takes the context.
        let namespace = unsafe { bpf_get_netns_cookie(self.0.as_ptr()) };
        CLIENTS.get_ptr(namespace).is_some()
    }

    /// Whether the socket has a peer, and takes answers from nobody else.
    #[inline(always)]
    fn is_connected(&mut self) -> bool {
        /// Of include/net/tcp_states.h, TCP_ESTABLISHED; connected sockets of UDP have it, too.
        const ESTABLISHED: u32 = 1;
        // SAFETY: the kernel gives the socket to programs of this type.
        unsafe { (*self.fields().__bindgen_anon_1.sk).state == ESTABLISHED }
    }

    #[inline(always)]
    fn socket(&self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_socket_cookie(self.0.as_ptr()) }
    }

    #[inline(always)]
    fn protocol(&mut self) -> Protocol {
        // More than 255 only for MPTCP, which is none of ours.
        match self.fields().protocol {
            6 => Protocol::TCP,
            17 => Protocol::UDP,
            _ => Protocol(0),
        }
    }

    #[inline(always)]
    fn port(&mut self) -> [u8; 2] {
        let [a, b, ..] = self.fields().user_port.to_ne_bytes();
        [a, b]
    }

    #[inline(always)]
    fn set_port(&mut self, [a, b]: [u8; 2]) {
        self.fields().user_port = u32::from_ne_bytes([a, b, 0, 0]);
    }
}

/// The address of a call, which is of the family of the socket that makes it.
trait Family {
    fn address(call: &mut Call) -> Address;
    /// Says whether a socket of this family can speak to that address.
    fn set_address(call: &mut Call, address: Address) -> bool;
}

struct V4;
struct V6;

impl Family for V4 {
    #[inline(always)]
    fn address(call: &mut Call) -> Address {
        Address::v4(call.fields().user_ip4.to_ne_bytes())
    }

    #[inline(always)]
    fn set_address(call: &mut Call, address: Address) -> bool {
        let Some(octets) = address.as_v4() else {
            return false;
        };
        call.fields().user_ip4 = u32::from_ne_bytes(octets);
        true
    }
}

impl Family for V6 {
    #[inline(always)]
    fn address(call: &mut Call) -> Address {
        let mut octets = [0; 16];
        let mut word = 0;
        while word < 4 {
            let [a, b, c, d] = call.fields().user_ip6[word].to_ne_bytes();
            octets[4 * word] = a;
            octets[4 * word + 1] = b;
            octets[4 * word + 2] = c;
            octets[4 * word + 3] = d;
            word += 1;
        }
        Address(octets)
    }

    #[inline(always)]
    fn set_address(call: &mut Call, Address(octets): Address) -> bool {
        let mut word = 0;
        while word < 4 {
            let at = 4 * word;
            call.fields().user_ip6[word] =
                u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
            word += 1;
        }
        true
    }
}

/// Has a call speak to another.
#[inline(always)]
fn lead<F: Family>(call: &mut Call, to: Endpoint) -> bool {
    let led = F::set_address(call, to.address);
    if led {
        call.set_port(to.port);
    }
    led
}

#[inline(always)]
fn connect<F: Family>(mut call: Call) -> Option<()> {
    let protocol = call.protocol();
    if protocol != Protocol::TCP || !call.is_ours() {
        return None;
    }
    let frontend = Frontend::new(F::address(&mut call), call.port(), protocol);
    // SAFETY: takes nothing.
    let endpoint = connection(&Maps, &frontend, unsafe { bpf_get_prandom_u32() })?;
    if lead::<F>(&mut call, endpoint) {
        let peer = Peer {
            asked: frontend.socket(),
            endpoint,
        };
        // Without it the socket's peer is the endpoint: no harm.
        let _ = PEERS.insert(call.socket(), peer, BPF_ANY.into());
    }
    Some(())
}

#[inline(always)]
fn send<F: Family>(mut call: Call) -> Option<()> {
    let protocol = call.protocol();
    if protocol != Protocol::UDP || call.is_connected() || !call.is_ours() {
        return None;
    }
    let frontend = Frontend::new(F::address(&mut call), call.port(), protocol);
    // SAFETY: takes nothing.
    let lot = unsafe { bpf_get_prandom_u32() };
    let endpoint = datagram(&Maps, call.socket(), &frontend, lot)?;
    lead::<F>(&mut call, endpoint);
    Some(())
}

#[inline(always)]
fn receive<F: Family>(mut call: Call) -> Option<()> {
    if call.protocol() != Protocol::UDP {
        return None;
    }
    let sender = Endpoint::new(F::address(&mut call), call.port());
    let asked = answer(&Maps, call.socket(), sender)?;
    lead::<F>(&mut call, asked);
    Some(())
}

#[inline(always)]
fn peer<F: Family>(mut call: Call) -> Option<()> {
    if call.protocol() != Protocol::TCP {
        return None;
    }
    // SAFETY: the value is copied at once.
    let peer = unsafe { PEERS.get(call.socket()) }.copied()?;
    let asked = peer.seen(Endpoint::new(F::address(&mut call), call.port()))?;
    lead::<F>(&mut call, asked);
    Some(())
}

/// The kernel's word for going on; what is not led goes on as it is.
const GO_ON: i32 = 1;

macro_rules! hooks {
    ($($name:ident: $work:ident::<$family:ident>;)*) => {$(
        #[cgroup_sock_addr($name)]
        pub fn $name(context: SockAddrContext) -> i32 {
            $work::<$family>(Call(context));
            GO_ON
        }
    )*};
}

hooks! {
    connect4: connect::<V4>;
    connect6: connect::<V6>;
    sendmsg4: send::<V4>;
    sendmsg6: send::<V6>;
    recvmsg4: receive::<V4>;
    recvmsg6: receive::<V6>;
    getpeername4: peer::<V4>;
    getpeername6: peer::<V6>;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses what could come here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
