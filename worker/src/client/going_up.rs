//! The part of a call that goes up by a stream.

use std::sync::Arc;
use std::time::Duration;

use http_body::Body as _;
use http_body_util::BodyExt;
use natsway_caller::stream::Opening;
use natsway_caller::stream::activity::{Activity, Watch};
use natsway_caller::stream::upload::{Progress, WatchedUpload};
use natsway_routes::table::Route;

use super::stream_places::StreamPlace;
use crate::Body;
use crate::handler::body::Partial;

/// The part of a call that goes up by a stream.
pub(super) struct GoingUp {
    /// What is sent; nothing once it was.
    pub(super) opening: Option<Opening>,
    /// How long the body is, if it says so.
    pub(super) length: Option<u64>,
    pub(super) progress: Arc<Progress>,
    /// When something last came, in either direction.
    pub(super) activity: Arc<Activity>,
    pub(super) max_bytes: Option<u64>,
    /// Until its response takes it over.
    pub(super) place: Option<StreamPlace>,
}

impl GoingUp {
    /// Returns what goes up of a body that was begun.
    pub(super) fn new(
        body: Partial<Body>,
        place: StreamPlace,
        route: &Route,
        idle_timeout: Duration,
    ) -> Self {
        let Partial { first, beyond, body } = body;
        let rest = Body::streamed(beyond.unwrap_or_default(), body);
        let length = rest.size_hint().exact().map(|rest| rest + first.len() as u64);
        let (progress, activity) = (Arc::<Progress>::default(), Activity::start());
        let watch = Watch::new(Arc::clone(&activity), idle_timeout, route.streams.max_age);
        let max_bytes = route.limits.max_body_bytes;
        let body = WatchedUpload::new(first, rest, max_bytes, watch, Arc::clone(&progress));
        let opening = Some(Opening::Upload { body: body.boxed_unsync(), length });
        Self { opening, length, progress, activity, max_bytes, place: Some(place) }
    }
}
