//! Who is let in by the client listener: whoever shows a token of this replica's list.

use std::sync::Arc;

use holdfast_tls::Tokens;
use holdfast_wire::errors::Reason;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::metrics::Metrics;

const MISSING: &str = "this replica wants a token: give it with --endpoints-token-file \
                       (HOLDFAST_ENDPOINTS_TOKEN_FILE; that of `holdfast up` is api-token in its data directory), in \
                       JupyterHub with HoldfastProxy.auth_token_file, by other means as the metadata `authorization: \
                       Bearer TOKEN`";
const WRONG: &str = "the token is none of this replica's: compare the first line of --endpoints-token-file, in JupyterHub \
                     HoldfastProxy.auth_token_file or auth_token, with the lines of the replica's --api-token-file";

/// Looks at every call's token.
#[derive(Clone)]
pub struct Guard {
    pub tokens: Tokens,
    pub metrics: Arc<Metrics>,
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let given = token(request.metadata());
        if self.tokens.admit(given) {
            return Ok(request);
        }
        let (reason, words) = match given {
            Some(_) => ("wrong_token", WRONG),
            None => ("no_token", MISSING),
        };
        if self.metrics.api_call_refused(reason) {
            let from = request.remote_addr().map(|from| from.to_string());
            tracing::warn!(
                reason,
                from,
                "a call was refused; others like it in the next seconds are only counted"
            );
        }
        Err(Reason::Token.status(words))
    }
}

/// Of `authorization: Bearer TOKEN`.
fn token(metadata: &MetadataMap) -> Option<&str> {
    let given = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, token) = given.trim().split_once(' ')?;
    let token = scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())?;
    (!token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_call_without_a_token_of_the_list_is_refused_and_told_what_to_do() {
        let guard_of = |tokens| Guard {
            tokens,
            metrics: Arc::default(),
        };
        let mut guard = guard_of(Tokens::new(["old", "new"]));
        let mut ask = |value: Option<&str>| {
            let mut request = Request::new(());
            if let Some(value) = value {
                request.metadata_mut().insert("authorization", value.parse().unwrap());
            }
            guard.call(request).map(drop)
        };
        for good in ["Bearer old", "bearer new", "BEARER  new ", "Bearer new"] {
            assert!(ask(Some(good)).is_ok(), "{good}");
        }
        for (bad, expected) in [
            (None, MISSING),
            (Some("Bearer"), MISSING),
            (Some("Bearer "), MISSING),
            (Some("token new"), MISSING),
            (Some("new"), MISSING),
            (Some("Bearer newer"), WRONG),
            (Some("Bearer new old"), WRONG),
        ] {
            let refusal = ask(bad).unwrap_err();
            assert_eq!(
                (refusal.code(), refusal.message()),
                (Code::Unauthenticated, expected),
                "{bad:?}"
            );
            assert_eq!(Reason::from_status(&refusal), Some(Reason::Token));
        }
        assert!(guard_of(Tokens::default()).call(Request::new(())).is_ok());
    }
}
