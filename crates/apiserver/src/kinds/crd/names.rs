//! Which names a definition gets, and the conditions that say so.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::value::{list, text, unset};

/// Sets the status of a CustomResourceDefinition: accepted names, `NamesAccepted`, `Established`, stored versions.
/// `others` are all other CustomResourceDefinitions. True when something changed.
pub fn establish(crd: &mut Value, others: &[Value], now: Timestamp) -> bool {
    let before = crd["status"].clone();
    let (accepted, conflict) = accept(crd, others);
    let mut conditions: Vec<Value> = list(&before["conditions"]).to_vec();
    match conflict {
        None => {
            set(
                &mut conditions,
                "NamesAccepted",
                true,
                "NoConflicts",
                "no conflicts found",
                now,
            );
            let message = "the initial names have been accepted";
            set(
                &mut conditions,
                "Established",
                true,
                "InitialNamesAccepted",
                message,
                now,
            );
        }
        Some((reason, message)) => {
            set(&mut conditions, "NamesAccepted", false, reason, &message, now);
            // Once established it stays so, with the names it got then.
            if !conditions
                .iter()
                .any(|c| c["type"] == "Established" && c["status"] == "True")
            {
                let message = "not all names are accepted";
                set(&mut conditions, "Established", false, "NotAccepted", message, now);
            }
        }
    }
    let mut stored: Vec<Value> = list(&before["storedVersions"]).to_vec();
    for version in list(&crd["spec"]["versions"])
        .iter()
        .filter(|v| v["storage"] == true)
    {
        if !stored.contains(&version["name"]) {
            stored.push(version["name"].clone());
        }
    }
    crd["status"] = json!({"acceptedNames": accepted, "conditions": conditions, "storedVersions": stored});
    crd["status"] != before
}

fn set(conditions: &mut Vec<Value>, kind: &str, status: bool, reason: &str, message: &str, now: Timestamp) {
    let status = if status { "True" } else { "False" };
    let found = conditions.iter_mut().find(|c| c["type"] == kind);
    let since = match &found {
        Some(c) if c["status"] == status => c["lastTransitionTime"].clone(),
        _ => now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into(),
    };
    let condition = json!({"type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since});
    match found {
        Some(c) => *c = condition,
        None => conditions.push(condition),
    }
}

/// The names this definition may have, and the conflict that kept one from it.
fn accept(crd: &Value, others: &[Value]) -> (Value, Option<(&'static str, String)>) {
    let wanted = &crd["spec"]["names"];
    let same_group = others.iter().filter(|o| {
        o["spec"]["group"] == crd["spec"]["group"] && o["metadata"]["name"] != crd["metadata"]["name"]
    });
    let taken: Vec<&Value> = same_group.map(|o| &o["status"]["acceptedNames"]).collect();
    let resource_taken = |name: &str| {
        taken.iter().any(|n| {
            n["plural"] == name || n["singular"] == name || list(&n["shortNames"]).iter().any(|s| s == name)
        })
    };
    let kind_taken = |name: &str| taken.iter().any(|n| n["kind"] == name || n["listKind"] == name);
    let mut accepted = wanted.clone();
    let old = &crd["status"]["acceptedNames"];
    let mut conflict = None;
    for (field, reason, is_taken) in [
        (
            "plural",
            "PluralConflict",
            &resource_taken as &dyn Fn(&str) -> bool,
        ),
        ("singular", "SingularConflict", &resource_taken),
        ("kind", "KindConflict", &kind_taken),
        ("listKind", "ListKindConflict", &kind_taken),
    ] {
        let name = text(&wanted[field]);
        if !name.is_empty() && is_taken(name) {
            accepted[field] = if unset(&old[field]) {
                "".into()
            } else {
                old[field].clone()
            };
            conflict = Some((reason, format!("{name:?} is already in use")));
        }
    }
    let short: Vec<&str> = list(&wanted["shortNames"])
        .iter()
        .map(text)
        .filter(|n| resource_taken(n))
        .collect();
    if let Some(first) = short.first() {
        accepted["shortNames"] = old["shortNames"].clone();
        conflict = Some(("ShortNamesConflict", format!("{first:?} is already in use")));
    }
    (accepted, conflict)
}
