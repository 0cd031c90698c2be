//! What becomes of a stored request by what its handler did, and how often it was delivered. Pure.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use natsway_wire::Limits;
use natsway_wire::envelope::{Reply, Signal, decode_reply, encode_response};
use natsway_wire::problem::Problem;

/// Before the second delivery; twice as long before each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause before another delivery.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This is its result.
    Keep(Bytes),
    /// It is delivered again, after a while.
    TryAgain {
        /// How long.
        after: Duration,
    },
}

/// Which delivery of a request this is, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    /// 1 for the first.
    pub(super) number: u64,
    /// After these it is given up.
    pub(super) most: u64,
}

impl Delivery {
    /// Returns the result of a request that was delivered so often that it is not tried again: its
    /// workers died of it, each time.
    pub(super) fn before_running(self) -> Option<Bytes> {
        (self.number > self.most).then(|| self.given_up())
    }

    /// Decides by what the handler answered; by nothing if it was dropped. Any response is the
    /// result, whatever its status, but for 503: that asks for another try.
    pub(super) fn judge(self, answer: Option<Bytes>) -> Verdict {
        let Some(answer) = answer else { return Verdict::TryAgain { after: Duration::ZERO } };
        let asks_for_another = match decode_reply(&answer, Limits::DEFAULT) {
            Ok(Reply::Response(response)) => response.status == StatusCode::SERVICE_UNAVAILABLE,
            Ok(Reply::Signal(Signal::NotRun(_))) if self.is_last() => {
                return Verdict::Keep(self.given_up());
            }
            // What is no response is a word about one that never will be.
            Ok(Reply::Signal(_) | Reply::Reference(..)) | Err(_) => true,
        };
        match asks_for_another && !self.is_last() {
            true => Verdict::TryAgain { after: self.pause() },
            false => Verdict::Keep(answer),
        }
    }

    fn is_last(self) -> bool {
        self.number >= self.most
    }

    fn pause(self) -> Duration {
        let doublings = u32::try_from(self.number.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
        (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
    }

    fn given_up(self) -> Bytes {
        let detail =
            format!("the request was delivered {} times, and no worker finished it", self.most);
        problem("given_up", detail)
    }
}

/// The result of a message that is no request.
pub(super) fn unreadable(reason: &str) -> Bytes {
    problem("unreadable_request", format!("what was stored is no request: {reason}"))
}

/// The result where the handler's is not kept.
pub(super) fn not_kept(reason: &str) -> Bytes {
    problem("result_not_kept", format!("the request ran, and its result is not kept: {reason}"))
}

fn problem(code: &'static str, detail: String) -> Bytes {
    let problem = Problem::new(StatusCode::BAD_GATEWAY, code, detail);
    encode_response(problem.status, &problem.fields(), &HeaderMap::new(), &problem.document(None))
        .expect("a few short fields are within every limit")
}

#[cfg(test)]
mod tests {
    use natsway_wire::envelope::{NotRun, encode_signal};

    use super::*;

    fn delivery(number: u64) -> Delivery {
        Delivery { number, most: 3 }
    }

    fn response(status: u16) -> Bytes {
        let (status, none) = (StatusCode::from_u16(status).unwrap(), HeaderMap::new());
        encode_response(status, &none, &none, b"body").unwrap()
    }

    fn code(result: &Bytes) -> (u16, String) {
        let Ok(Reply::Response(response)) = decode_reply(result, Limits::DEFAULT) else {
            panic!("it is a response")
        };
        let document: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        (response.status.as_u16(), document["code"].as_str().unwrap().to_owned())
    }

    #[test]
    fn any_response_is_the_result_but_one_that_asks_for_another_try() {
        for status in [200, 201, 202, 404, 429, 500, 502, 504] {
            let kept = delivery(1).judge(Some(response(status)));
            assert_eq!(kept, Verdict::Keep(response(status)), "{status}");
        }
        let again = delivery(1).judge(Some(response(503)));
        assert_eq!(again, Verdict::TryAgain { after: FIRST_PAUSE });
        assert_eq!(delivery(3).judge(Some(response(503))), Verdict::Keep(response(503)));
    }

    #[test]
    fn pauses_grow_up_to_a_minute() {
        let pause = |number| match (Delivery { number, most: u64::MAX }).judge(Some(response(503)))
        {
            Verdict::TryAgain { after } => after.as_secs(),
            Verdict::Keep(_) => panic!("it is tried again"),
        };
        assert_eq!([pause(1), pause(2), pause(4), pause(7), pause(1_000)], [1, 2, 8, 60, 60]);
    }

    #[test]
    fn what_did_not_run_is_tried_again_and_given_up_in_the_end() {
        let signal = || Some(encode_signal(&Signal::NotRun(NotRun::UpstreamDown)));
        assert!(matches!(delivery(2).judge(signal()), Verdict::TryAgain { .. }));
        let Verdict::Keep(result) = delivery(3).judge(signal()) else { panic!("it is given up") };
        assert_eq!(code(&result), (502, "given_up".to_owned()));
    }

    #[test]
    fn a_handler_that_was_dropped_leaves_the_request_to_others_at_once() {
        let at_once = Verdict::TryAgain { after: Duration::ZERO };
        assert_eq!(delivery(1).judge(None), at_once);
        assert_eq!(delivery(3).judge(None), at_once, "it is given up before it would run again");
    }

    #[test]
    fn a_request_of_which_workers_die_is_not_run_for_ever() {
        assert_eq!(delivery(3).before_running(), None);
        let result = delivery(4).before_running().unwrap();
        assert_eq!(code(&result), (502, "given_up".to_owned()));
    }
}
