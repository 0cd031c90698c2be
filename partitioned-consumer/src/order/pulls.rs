//! Which pulls are out, what they may still deliver, and which of them prove that the pin was
//! renewed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Pull;

#[derive(Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Pulls {
    last_number: u64,
    /// Pulls of this epoch that may still be answered.
    open: BTreeMap<u64, Open>,
    /// What open pulls may still deliver.
    credit: usize,
    pub(super) renew_at: Duration,
    standby_at: Option<Duration>,
}

#[cfg_attr(test, derive(Clone))]
struct Open {
    sent_at: Duration,
    expires_at: Duration,
    probe: bool,
}

/// How long a pull for messages stays open; it costs nothing while it waits.
const OPEN_FOR: Duration = Duration::from_secs(30);
const STANDBY_OPEN_FOR: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);
/// Where the server's clock and ours may differ about when a pull has expired.
const SLACK: Duration = Duration::from_secs(2);

impl Pulls {
    /// Forgets every pull: their answers, if any come, mean nothing now.
    pub(super) fn next_epoch(&self) -> Self {
        Self { last_number: self.last_number, ..Self::default() }
    }

    pub(super) fn known(&self, number: u64) -> bool {
        self.open.contains_key(&number)
    }

    pub(super) fn outstanding(&self) -> usize {
        self.credit
    }

    pub(super) fn delivered(&mut self) {
        self.credit = self.credit.saturating_sub(1);
    }

    /// The server knows this pull; gives back when it was sent.
    pub(super) fn accepted(
        &mut self,
        number: u64,
        ended: bool,
        unused: u32,
        now: Duration,
    ) -> Option<Duration> {
        let open = self.open.get(&number)?;
        let (sent_at, probe) = (open.sent_at, open.probe);
        if ended {
            self.open.remove(&number);
            if !probe {
                self.credit = self.credit.saturating_sub(unused as usize);
            }
            if self.standby_at.is_some() {
                self.standby_at = Some(now);
            }
        } else if let Some(at) = &mut self.standby_at {
            *at = now + STANDBY_OPEN_FOR / 2;
        }
        Some(sent_at)
    }

    pub(super) fn refused(&mut self, number: u64, unused: u32, now: Duration) {
        if let Some(open) = self.open.remove(&number) {
            if !open.probe {
                self.credit = self.credit.saturating_sub(unused as usize);
            }
            self.renew_at = self.renew_at.min(now + RETRY);
            if self.standby_at.is_some() {
                self.standby_at = Some(now + RETRY);
            }
        }
    }

    pub(super) fn standby_check_at(&self) -> Option<Duration> {
        Some(self.standby_at.unwrap_or_default())
    }

    /// One pull without a pin waits at the server; it is sent again when it ended or went silent.
    pub(super) fn standby(&mut self, now: Duration, pinned_ttl: Duration) -> Option<Pull> {
        if self.standby_at.is_some_and(|at| now < at) {
            return None;
        }
        let heartbeat = (pinned_ttl / 2).clamp(Duration::from_millis(500), Duration::from_secs(2));
        self.open.clear();
        self.credit = 0;
        // Two heartbeats missing: the server has forgotten it.
        self.standby_at = Some(now + heartbeat * 3);
        Some(self.send(now, 1, None, false, STANDBY_OPEN_FOR, heartbeat))
    }

    /// Renews the pin when that is due.
    ///
    /// Only a probe is answered for sure while messages flow (a fulfilled pull ends in silence), so
    /// only probes renew.
    pub(super) fn renew(
        &mut self,
        now: Duration,
        renewal: Duration,
        pin: &Arc<str>,
    ) -> Option<Pull> {
        if now < self.renew_at {
            return None;
        }
        self.renew_at = now + renewal;
        while self.open.first_entry().is_some_and(|first| first.get().expires_at + SLACK <= now) {
            self.open.pop_first();
        }
        if self.open.values().all(|open| open.probe) {
            // Whatever is still counted was lost on its way: nothing is left that could deliver it.
            self.credit = 0;
        }
        let heartbeat = (renewal / 4).max(Duration::from_millis(20));
        Some(self.send(now, 1, Some(pin), true, renewal * 4, heartbeat))
    }

    /// Asks for messages when enough room has come free.
    pub(super) fn refill(&mut self, now: Duration, wanted: usize, pin: &Arc<str>) -> Option<Pull> {
        let enough = wanted > 0 && wanted >= self.credit;
        enough.then(|| self.send(now, wanted as u32, Some(pin), false, OPEN_FOR, Duration::ZERO))
    }

    fn send(
        &mut self,
        now: Duration,
        batch: u32,
        pin: Option<&Arc<str>>,
        probe: bool,
        expires: Duration,
        heartbeat: Duration,
    ) -> Pull {
        self.last_number += 1;
        self.open.insert(self.last_number, Open { sent_at: now, expires_at: now + expires, probe });
        if !probe {
            self.credit += batch as usize;
        }
        Pull { number: self.last_number, batch, pin: pin.cloned(), probe, expires, heartbeat }
    }
}
