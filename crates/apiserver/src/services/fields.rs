//! What a Service asks for and has, field by field, and what a write leaves to the server.

use serde_json::{Value, json};

use super::Item;

pub(super) const NONE: &str = "None";

pub(super) fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    service["spec"][field].as_str().unwrap_or_default()
}

pub(super) fn strings(service: &Value, field: &str) -> Vec<String> {
    let list = service["spec"][field].as_array().into_iter().flatten();
    list.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

pub(super) fn is_headless(service: &Value) -> bool {
    text(service, "clusterIP") == NONE
}

fn has_addresses(service: &Value) -> bool {
    text(service, "type") != "ExternalName" && !is_headless(service)
}

/// Whether its ports may have node ports.
pub(super) fn has_node_ports(service: &Value) -> bool {
    matches!(text(service, "type"), "NodePort" | "LoadBalancer")
}

/// Whether a port that names no node port is given one. Those that are named are taken whatever
/// `allocateLoadBalancerNodePorts` says, and it takes none away.
pub(super) fn allocates_node_ports(service: &Value) -> bool {
    has_node_ports(service)
        && (text(service, "type") != "LoadBalancer"
            || service["spec"]["allocateLoadBalancerNodePorts"] != false)
}

pub(super) fn has_health_check_port(service: &Value) -> bool {
    text(service, "type") == "LoadBalancer" && text(service, "externalTrafficPolicy") == "Local"
}

/// Everything a Service holds.
pub(super) fn items(service: &Value) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    if has_addresses(service) {
        let addresses = strings(service, "clusterIPs");
        items.extend(
            addresses
                .iter()
                .filter_map(|text| text.parse().ok())
                .map(Item::Address),
        );
    }
    if has_node_ports(service) {
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let numbers = ports.filter_map(|port| u16::try_from(port["nodePort"].as_u64()?).ok());
        for number in numbers.filter(|number| *number != 0).map(Item::Port) {
            if !items.contains(&number) {
                items.push(number);
            }
        }
    }
    if has_health_check_port(service) {
        let number = service["spec"]["healthCheckNodePort"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok());
        items.extend(number.filter(|number| *number != 0).map(Item::Port));
    }
    items
}

/// `clusterIP` and `clusterIPs[0]` say the same; a client may have set only one of them.
pub(super) fn sync_first_address(service: &mut Value, old: Option<&Value>) {
    let first = text(service, "clusterIP").to_owned();
    let mut all = strings(service, "clusterIPs");
    let changed = old.is_none_or(|old| text(old, "clusterIP") != first);
    let all_changed = old.is_none_or(|old| strings(old, "clusterIPs") != all);
    if changed && !all_changed && old.is_some() {
        match (first.is_empty(), all.is_empty()) {
            (true, _) => all.clear(),
            (false, true) => all.push(first),
            (false, false) => all[0] = first,
        }
    } else if all.is_empty() && !first.is_empty() {
        all.push(first);
    } else if first.is_empty() && !all.is_empty() {
        service["spec"]["clusterIP"] = json!(all[0]);
    }
    if !all.is_empty() {
        service["spec"]["clusterIPs"] = json!(all);
    }
}

/// A replace that leaves allocated fields out keeps them.
pub(super) fn keep_allocated(service: &mut Value, old: &Value) {
    if has_addresses(old) && has_addresses(service) {
        if text(service, "clusterIP").is_empty() && strings(service, "clusterIPs").is_empty() {
            service["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
            service["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if service["spec"][field].is_null() {
                service["spec"][field] = old["spec"][field].clone();
            }
        }
    }
    if allocates_node_ports(old) && allocates_node_ports(service) {
        let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let same = |a: &Value, b: &Value| a["port"] == b["port"] && a["protocol"] == b["protocol"];
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if port["nodePort"].as_u64().unwrap_or_default() == 0
                && let Some(former) = before.iter().find(|former| same(former, port))
                && !former["nodePort"].is_null()
            {
                port["nodePort"] = former["nodePort"].clone();
            }
        }
    }
    if has_health_check_port(old)
        && has_health_check_port(service)
        && service["spec"]["healthCheckNodePort"]
            .as_u64()
            .unwrap_or_default()
            == 0
    {
        service["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    }
}

/// Fields that the new type does not have, when the client has only carried them along.
pub(super) fn drop_what_the_type_lost(service: &mut Value, old: &Value) {
    let lost = |has: fn(&Value) -> bool, service: &Value| has(old) && !has(service);
    if text(service, "type") == "ExternalName" && text(old, "type") != "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            remove_if_carried(service, old, field);
        }
    }
    if lost(has_node_ports, service) {
        let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if before.iter().any(|former| former["nodePort"] == port["nodePort"])
                && let Some(port) = port.as_object_mut()
            {
                port.shift_remove("nodePort");
            }
        }
        remove_if_carried(service, old, "externalTrafficPolicy");
        remove_if_carried(service, old, "allocateLoadBalancerNodePorts");
    }
    if lost(has_health_check_port, service) {
        remove_if_carried(service, old, "healthCheckNodePort");
    }
}

fn remove_if_carried(service: &mut Value, old: &Value, field: &str) {
    if service["spec"][field] == old["spec"][field]
        && let Some(spec) = service["spec"].as_object_mut()
    {
        spec.shift_remove(field);
    }
}
