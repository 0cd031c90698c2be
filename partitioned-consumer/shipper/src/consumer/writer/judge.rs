//! What becomes of a source's messages: planned by its commit, and by what the stream says where
//! that is not enough.

use tracing::{error, warn};

use super::super::offsets::Offsets;
use super::super::plan::{self, Facts, Item, Plan};
use super::super::receive::Delivery;
use super::{GivenUp, Work, Writer, finish};
use crate::accept::wanted;
use crate::name::Source;

impl<O: Offsets> Writer<O> {
    /// Plans a source's messages, and keeps those that have to wait.
    pub(super) async fn judge(
        &mut self,
        source: Source,
        mut deliveries: Vec<Delivery>,
    ) -> Result<Option<Work>, GivenUp> {
        let plan = self.plan(&source, &deliveries).await?;
        self.report(&source, &plan);
        self.park(&source, &plan, &mut deliveries);
        if !plan.changes(self.commit_of(&source)) {
            deliveries.into_iter().for_each(finish);
            return Ok(None);
        }
        Ok(Some(Work { source, deliveries, plan, target: None, commit: None }))
    }

    /// Plans from what is known. What rests on a doubt is planned again from the newest commit, and
    /// what is unclear from what the stream says of it.
    async fn plan(&mut self, source: &Source, deliveries: &[Delivery]) -> Result<Plan, GivenUp> {
        let items: Vec<Item> = deliveries.iter().map(item).collect();
        let mut facts = Facts::default();
        // Without commits there is nothing newer.
        let mut is_newest = self.parts.offset_store.is_none();
        loop {
            let plan = Plan::new(self.commit_of(source), &items, &facts);
            if plan.is_doubtful() && !is_newest {
                is_newest = true;
                self.load(std::slice::from_ref(source)).await?;
            } else if !self.learn(source, &plan, &items, deliveries, &mut facts).await {
                return Ok(plan);
            }
        }
    }

    /// Asks for one fact that a plan misses; returns whether there is one that was not known.
    async fn learn(
        &mut self,
        source: &Source,
        plan: &Plan,
        items: &[Item],
        deliveries: &[Delivery],
        facts: &mut Facts,
    ) -> bool {
        if let Some((index, mark)) = plan.unclear {
            // The messages at hand are asked first, then the stream.
            let mut found = plan::behind(mark, items, index);
            if found.is_none() {
                let (Some(head), Some(state)) = (items[index].head, self.states.get_mut(source))
                else {
                    return false;
                };
                let (mark, sequence) = (wanted(mark, &head).0, items[index].sequence);
                let search = &mut state.searched;
                let subject = &deliveries[index].subject;
                found = self.lookups.behind(search, (sequence, mark), &head, subject).await;
            }
            let Some(found) = found else { return false };
            facts.learn(items[index].sequence, found);
            return true;
        }
        let Some(first) = plan.waiting.first().filter(|_| !facts.alone) else { return false };
        let all = self.parts.prefix.of_source(source);
        facts.alone = self.lookups.is_alone(all, &deliveries[*first].subject).await;
        facts.alone
    }

    /// Takes the messages that have to wait out of `deliveries`.
    fn park(&mut self, source: &Source, plan: &Plan, deliveries: &mut Vec<Delivery>) {
        let mut waiting: Vec<Delivery> =
            plan.waiting.iter().rev().map(|index| deliveries.remove(*index)).collect();
        waiting.reverse();
        // One that is not kept comes again in a while.
        waiting.retain(|delivery| delivery.may_wait_here);
        self.parked.park(source.clone(), waiting);
    }

    /// Counts and logs what a plan came to.
    fn report(&self, source: &Source, plan: &Plan) {
        let metrics = &self.parts.metrics;
        metrics.duplicates.add(plan.duplicates);
        metrics.ahead.add(plan.ahead);
        metrics.stale.add(plan.stale);
        metrics.lost_bytes.add(plan.lost_bytes);
        metrics.skipped_bytes.add(plan.skipped_bytes);
        if plan.lost_bytes > 0 {
            error!(%source, bytes = plan.lost_bytes, "the broker lost messages that it had \
                                                      acknowledged");
        }
        if plan.stale > 0 {
            error!(%source, messages = plan.stale, "dropped messages of an older history: are \
                                                    there two producers of that name");
        }
        if plan.skipped_bytes > 0 {
            warn!(%source, bytes = plan.skipped_bytes, "the producer could not read some lines");
        }
    }
}

/// A message as a plan sees it.
fn item(delivery: &Delivery) -> Item {
    Item {
        head: delivery.head,
        partition: delivery.partition,
        sequence: delivery.sequence,
        payload: delivery.payload.clone(),
    }
}
