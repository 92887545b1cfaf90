use ipnet::IpNet;

/// A ServiceCIDR: ranges from which the cluster gives services their cluster IPs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceCidr {
    /// One range per family.
    pub ranges: Vec<IpNet>,
}

impl ServiceCidr {
    /// From the texts of `spec.cidrs`; the error is for its owner.
    pub fn read<'a>(cidrs: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let parse = |text: &str| {
            super::parse_range(text)
                .map(|range| range.trunc())
                .map_err(|why| format!("spec.cidrs: {why}"))
        };
        let ranges: Result<Vec<IpNet>, String> = cidrs.into_iter().map(parse).collect();
        Ok(ServiceCidr { ranges: ranges? })
    }
}
