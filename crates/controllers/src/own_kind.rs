//! podnet's own kinds, as the API has them.

/// A kind of the group `podnet.io` whose objects belong to the cluster. What an object says is read elsewhere, since what
/// is wrong in one part must not hide the others.
macro_rules! own_kind {
    ($kind:ident, $plural:literal) => {
        #[doc = concat!("An object of the kind `", stringify!($kind), "`.")]
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $kind {
            /// Its metadata.
            #[serde(default)]
            pub metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
            /// What its owner wants.
            #[serde(default)]
            pub spec: serde_json::Value,
            /// What has come of it.
            #[serde(default)]
            pub status: serde_json::Value,
        }

        impl k8s_openapi::Resource for $kind {
            const API_VERSION: &'static str = "podnet.io/v1alpha1";
            const GROUP: &'static str = "podnet.io";
            const KIND: &'static str = stringify!($kind);
            const VERSION: &'static str = "v1alpha1";
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = k8s_openapi::ClusterResourceScope;
        }

        impl k8s_openapi::Metadata for $kind {
            type Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

            fn metadata(&self) -> &Self::Ty {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.metadata
            }
        }

        impl $kind {
            /// When it was created, in seconds since 1970.
            pub(crate) fn created(&self) -> i64 {
                let created = self.metadata.creation_timestamp.as_ref();
                created.map_or(i64::MAX, |time| time.0.as_second())
            }

            /// The condition `Ready` with this reason and message, which has its time from the one before where that said
            /// the same.
            pub(crate) fn ready_condition(
                &self,
                ready: bool,
                reason: &str,
                message: &str,
                now: jiff::Timestamp,
            ) -> serde_json::Value {
                let before = &self.status["conditions"][0];
                let status = if ready { "True" } else { "False" };
                let since = match before["status"] == status && before["lastTransitionTime"].is_string() {
                    true => before["lastTransitionTime"].clone(),
                    false => now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into(),
                };
                serde_json::json!([{
                    "type": "Ready", "status": status, "reason": reason, "message": message,
                    "lastTransitionTime": since,
                }])
            }

            /// Whether the condition says something else than before.
            pub(crate) fn is_news(&self, reason: &str, message: &str) -> bool {
                let before = &self.status["conditions"][0];
                before["reason"] != reason || before["message"] != message
            }
        }
    };
}

pub(crate) use own_kind;
