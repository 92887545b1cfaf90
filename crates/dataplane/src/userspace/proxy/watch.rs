//! What happens to the node that the proxy must know of: addresses, which have node ports, and whether the way to the
//! proxy is still there.

use std::io;
use std::sync::Arc;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use podnet_linux::netfilter::wire;
use tokio::sync::Notify;

use super::gate::PROTOCOL;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_ADDRESS: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_ADDRESS: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const DELETE_ROUTE: u16 = 25;
/// The place of the protocol in `struct rtmsg`.
const ROUTE_PROTOCOL_AT: usize = 5;
/// The place of the index in `struct ifinfomsg`.
const LINK_INDEX_AT: usize = 4;
/// The place of the scope in `struct ifaddrmsg`.
const ADDRESS_SCOPE_AT: usize = 3;
/// RT_SCOPE_LINK: of no use beyond a link. Each pod that comes or goes has one of these.
const SCOPE_LINK: u8 = 253;

/// Tells of every such change in the network namespace of the calling thread, for as long as somebody else holds `tell`.
/// Of all links only `link` matters.
pub(super) fn watch(link: u32, tell: Arc<Notify>) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in [
        RTNLGRP_LINK,
        RTNLGRP_IPV4_ADDRESS,
        RTNLGRP_IPV4_ROUTE,
        RTNLGRP_IPV6_ADDRESS,
        RTNLGRP_IPV6_ROUTE,
    ] {
        socket.add_membership(group)?;
    }
    let listen = move || {
        let mut buffer = vec![0; 64 << 10];
        while Arc::strong_count(&tell) > 1 {
            match socket.recv(&mut &mut buffer[..], 0) {
                Ok(length)
                    if !wire::messages(&buffer[..length]).any(|message| concerns_us(&message, link)) => {}
                // An error is that so much happened that some of it was lost.
                _ => tell.notify_one(),
            }
        }
    };
    std::thread::Builder::new().name("watch".into()).spawn(listen)?;
    Ok(())
}

fn concerns_us(message: &wire::Received<'_>, link: u32) -> bool {
    let payload = message.payload;
    match message.kind {
        DELETE_LINK => {
            let index = payload.get(LINK_INDEX_AT..LINK_INDEX_AT + 4);
            index.is_none_or(|index| index == link.to_ne_bytes())
        }
        NEW_ADDRESS | DELETE_ADDRESS => payload.get(ADDRESS_SCOPE_AT) != Some(&SCOPE_LINK),
        DELETE_ROUTE => payload.get(ROUTE_PROTOCOL_AT) == Some(&PROTOCOL),
        _ => false,
    }
}
