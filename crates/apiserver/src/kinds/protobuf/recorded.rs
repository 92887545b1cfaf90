//! Bodies as kubectl 1.32 sent them, in base64.

/// `kubectl create deployment web --image=podnet/echo --replicas=0 --port=8080`
pub(crate) const DEPLOYMENT: &str = "\
    azhzAAoVCgdhcHBzL3YxEgpEZXBsb3ltZW50Er4BCh8KA3dlYhIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViEowBCAASDAoKCgNhcHASA3dl\
    YhpyChwKABIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViElISNAoEZWNobxILcG9kbmV0L2VjaG8qADILCgAQABiQPyIAKgBCAGoAcgCAAQCI\
    AQCQAQCiAQAaADIAQgBKAFIAWABgAGgAggEAigEAmgEAwgEAIgIKACgAOAAaDAgAEAAYACAAKAA4ABoAIgA=";

/// `kubectl create configmap cm --from-literal=a=1 --from-literal=empty= --from-file=b=bin.dat`
pub(crate) const CONFIG_MAP: &str = "\
    azhzAAoPCgJ2MRIJQ29uZmlnTWFwEjMKEgoCY20SABoAIgAqADIAOABCABIGCgFhEgExEgkKBWVtcHR5EgAaCgoBYhIFYmluAP8aACIA";

/// `kubectl create secret generic s --from-literal=k=v --from-literal=e=`
pub(crate) const SECRET: &str = "\
    azhzAAoMCgJ2MRIGU2VjcmV0EiQKEQoBcxIAGgAiACoAMgA4AEIAEgUKAWUSABIGCgFrEgF2GgAaACIA";

/// `kubectl create service clusterip svc --tcp=80:8080`
pub(crate) const CLUSTER_IP: &str = "\
    azhzAAoNCgJ2MRIHU2VydmljZRJpCh8KA3N2YxIAGgAiACoAMgA4AEIAWgoKA2FwcBIDc3ZjEkIKGwoHODAtODA4MBIDVENQGFAiBwgAEJA/\
    GgAoABIKCgNhcHASA3N2YxoAIglDbHVzdGVySVA6AEIAUgBaAGAAaAAaAgoAGgAiAA==";

/// `kubectl create service nodeport np --tcp=80:http --node-port=30080`
pub(crate) const NODE_PORT: &str = "\
    azhzAAoNCgJ2MRIHU2VydmljZRJqCh0KAm5wEgAaACIAKgAyADgAQgBaCQoDYXBwEgJucBJFCiAKBzgwLWh0dHASA1RDUBhQIgoIARAAGgRo\
    dHRwKIDrARIJCgNhcHASAm5wGgAiCE5vZGVQb3J0OgBCAFIAWgBgAGgAGgIKABoAIgA=";

/// `kubectl create service externalname ex --external-name=example.org`
pub(crate) const EXTERNAL_NAME: &str = "\
    azhzAAoNCgJ2MRIHU2VydmljZRJXCh0KAmV4EgAaACIAKgAyADgAQgBaCQoDYXBwEgJleBIyEgkKA2FwcBICZXgaACIMRXh0ZXJuYWxOYW1l\
    OgBCAFILZXhhbXBsZS5vcmdaAGAAaAAaAgoAGgAiAA==";

/// `kubectl create namespace ns1`
pub(crate) const NAMESPACE: &str = "azhzAAoPCgJ2MRIJTmFtZXNwYWNlEhsKEwoDbnMxEgAaACIAKgAyADgAQgASABoCCgAaACIA";

/// `kubectl create serviceaccount sa`
pub(crate) const SERVICE_ACCOUNT: &str =
    "azhzAAoUCgJ2MRIOU2VydmljZUFjY291bnQSFAoSCgJzYRIAGgAiACoAMgA4AEIAGgAiAA==";
