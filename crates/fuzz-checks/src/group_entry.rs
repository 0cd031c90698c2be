//! The entry of a consumer group that can be read is written again and reads the same, unless it is
//! of the older generation, which nobody writes; so is an entry that is edited in place.

use natsway_partitioned_consumer::{ElasticConfig, Generation, StaticConfig, fuzzing};

/// See the module.
pub fn check(data: &[u8]) {
    if let Ok(config) = ElasticConfig::from_json(data) {
        let again = ElasticConfig::from_json(&config.to_json());
        assert!(config.generation == Generation::First || again.expect("it is ours") == config);
    }
    if let Ok(config) = StaticConfig::from_json(data) {
        let again = StaticConfig::from_json(&config.to_json());
        assert!(config.generation == Generation::First || again.expect("it is ours") == config);
    }
    fuzzing::group_document(data);
    fuzzing::group_settings(data);
}
