//! What whole requests of a proof go by.

/// What whole requests go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// The broker.
    #[default]
    Broker,
    /// Tunnels, where there are some.
    Auto,
    /// Tunnels, and every second worker makes none.
    Mixed,
}

impl Transport {
    /// Returns a route's further lines with its transport.
    pub(crate) fn with(self, lines: &str) -> String {
        match self {
            Self::Broker => lines.to_owned(),
            Self::Auto | Self::Mixed => format!("{lines}\ntransport = \"auto\""),
        }
    }

    /// Returns what the worker of this number has in `NATSWAY_TUNNEL`.
    pub(crate) fn of_worker(self, number: usize) -> &'static str {
        match self {
            Self::Mixed if number % 2 == 1 => "off",
            Self::Broker | Self::Auto | Self::Mixed => "auto",
        }
    }

    /// Whether requests to any worker go by tunnels, but for one now and then.
    pub(crate) fn is_by_tunnels(self) -> bool {
        self == Self::Auto
    }
}
