//! A service that misbehaves on purpose, for trying what becomes of a bad version.

use std::str::FromStr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};

/// Always answered as it should be, so that a check before a rollout passes.
const SOUND: &str = "/version";

/// How a service misbehaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Misbehaviour {
    /// This share of its requests is answered with 500.
    Fails(f64),
    /// Every request takes so much longer.
    Delays(Duration),
    /// Every request panics.
    Panics,
    /// No request is ever answered.
    Hangs,
}

impl FromStr for Misbehaviour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("{text:?}: expected fails=<percent>, delays=<ms>, panics or hangs");
        match text.split_once('=') {
            None if text == "panics" => Ok(Self::Panics),
            None if text == "hangs" => Ok(Self::Hangs),
            Some(("fails", percent)) => {
                let percent =
                    percent.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
                percent.map(|percent: f64| Self::Fails(percent / 100.0)).ok_or_else(expected)
            }
            Some(("delays", ms)) => {
                ms.parse().map(|ms| Self::Delays(Duration::from_millis(ms))).map_err(|_| expected())
            }
            _ => Err(expected()),
        }
    }
}

impl Misbehaviour {
    /// `service`, misbehaving so.
    pub(crate) fn around(self, service: Router) -> Router {
        service.layer(from_fn_with_state(self, misbehave))
    }
}

async fn misbehave(State(how): State<Misbehaviour>, request: Request, next: Next) -> Response {
    if request.uri().path() == SOUND {
        return next.run(request).await;
    }
    match how {
        Misbehaviour::Fails(share) if fastrand::f64() < share => {
            return (StatusCode::INTERNAL_SERVER_ERROR, "failing on purpose").into_response();
        }
        Misbehaviour::Fails(_) => {}
        Misbehaviour::Delays(by) => tokio::time::sleep(by).await,
        Misbehaviour::Panics => panic!("panicking on purpose"),
        Misbehaviour::Hangs => std::future::pending().await,
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn it_fails_as_it_is_told_and_never_a_check() {
        let service = Misbehaviour::Fails(1.0).around(Router::new().fallback(async || "fine"));
        for (path, expected) in [("/x", 500), ("/version", 200)] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            assert_eq!(service.clone().oneshot(request).await.unwrap().status(), expected);
        }
    }

    #[test]
    fn ways_to_misbehave_are_read_and_others_refused() {
        assert_eq!("fails=5".parse(), Ok(Misbehaviour::Fails(0.05)));
        assert_eq!("delays=15".parse(), Ok(Misbehaviour::Delays(Duration::from_millis(15))));
        assert_eq!("hangs".parse(), Ok(Misbehaviour::Hangs));
        for bad in ["", "fails", "fails=101", "fails=x", "delays=-1", "panics=1", "dances"] {
            assert!(bad.parse::<Misbehaviour>().is_err(), "{bad}");
        }
    }
}
