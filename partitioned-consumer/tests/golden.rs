//! Bytes and names that other implementations rely on.

use std::collections::BTreeMap;

use natsway_partitioned_consumer::{
    ElasticConfig, ErrorKind, Generation, MemberMapping, Membership, PartitioningFilter,
    StaticConfig, partition_of_key,
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Vector {
    #[serde(rename = "P")]
    partitions: u32,
    members: Vec<String>,
    out: BTreeMap<String, Option<Vec<String>>>,
}

#[test]
fn every_published_distribution_is_ours() {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("golden/partitions.json")).unwrap();
    assert!(vectors.len() > 70);
    for vector in vectors {
        let membership = Membership::Balanced(vector.members.clone());
        let group = ElasticConfig {
            membership: membership.clone(),
            ..ElasticConfig::new(vector.partitions)
        };
        let fixed = StaticConfig::new(vector.partitions, membership);
        for (member, filters) in vector.out {
            let expected = filters.unwrap_or_default();
            assert_eq!(
                group.partition_filters(&member),
                expected,
                "P={} {:?}",
                vector.partitions,
                vector.members
            );
            assert_eq!(fixed.partition_filters(&member), expected);
        }
    }
}

#[test]
fn static_entries_are_written_as_the_other_implementation_writes_them() {
    let mapped = Membership::Mapped(vec![
        MemberMapping::new("m1", [0, 1]),
        MemberMapping::new("m2", [2, 3]),
    ]);
    let cases = [
        (
            StaticConfig::new(4, mapped),
            r#"{"max_members":4,"member_mappings":[{"member":"m1","partitions":[0,1]},{"member":"m2","partitions":[2,3]}]}"#,
        ),
        (
            StaticConfig::new(10, Membership::balanced(["m1", "m2"])).filters(["foo.*"]),
            r#"{"max_members":10,"filters":["foo.*"],"members":["m1","m2"]}"#,
        ),
        (StaticConfig::new(1, Membership::Empty), r#"{"max_members":1}"#),
    ];
    for (config, json) in cases {
        assert_eq!(String::from_utf8(config.to_json()).unwrap(), json);
        assert_eq!(StaticConfig::from_json(json.as_bytes()).unwrap(), config);
    }
}

#[test]
fn elastic_entries_are_written_as_the_other_implementation_writes_them() {
    let limited = ElasticConfig::new(4)
        .filter("foo.*.*", [1, 2])
        .max_buffered_messages(-1)
        .max_buffered_bytes(5);
    let cases = [
        (ElasticConfig::new(10), r#"{"max_members":10,"partitioning_filters":null}"#),
        (
            limited,
            r#"{"max_members":4,"partitioning_filters":[{"filter":"foo.*.*","partitioning_wildcards":[1,2]}],"max_buffered_msg":-1,"max_buffered_bytes":5}"#,
        ),
    ];
    for (config, json) in cases {
        assert_eq!(String::from_utf8(config.to_json()).unwrap(), json);
        assert_eq!(ElasticConfig::from_json(json.as_bytes()).unwrap(), config);
    }
}

#[test]
fn null_absent_and_empty_read_alike() {
    let forms = [
        r#"{"max_members":3,"partitioning_filters":null}"#,
        r#"{"max_members":3,"partitioning_filters":[],"members":null,"unknown":{"a":1}}"#,
        r#"{"max_members":3,"members":[],"member_mappings":[]}"#,
    ];
    for form in forms {
        assert_eq!(
            ElasticConfig::from_json(form.as_bytes()).unwrap(),
            ElasticConfig::new(3),
            "{form}"
        );
    }
    let filter =
        br#"{"max_members":3,"partitioning_filters":[{"filter":"a.>","partitioning_wildcards":null}]}"#;
    assert_eq!(
        ElasticConfig::from_json(filter).unwrap().filters,
        [PartitioningFilter::new("a.>", [])]
    );
}

#[test]
fn the_older_generation_is_read() {
    let elastic =
        br#"{"max_members":4,"filter":"foo.*","partitioning_wildcards":[1],"members":["a","b"]}"#;
    let elastic = ElasticConfig::from_json(elastic).unwrap();
    assert_eq!(elastic.generation, Generation::First);
    assert_eq!(elastic.filters, [PartitioningFilter::new("foo.*", [1])]);
    // That generation filters on whole partitions.
    assert_eq!(elastic.partition_filters("a"), ["0.>", "1.>"]);
    let fixed =
        StaticConfig::from_json(br#"{"max_members":2,"filter":"","members":["a"]}"#).unwrap();
    assert_eq!((fixed.generation, fixed.filters.len()), (Generation::First, 0));
}

#[test]
fn consumer_filters_keep_the_order_of_filters_then_partitions() {
    let balanced = StaticConfig::new(4, Membership::balanced(["a", "b"])).filters(["x.>", "y.*"]);
    assert_eq!(balanced.partition_filters("b"), ["2.x.>", "3.x.>", "2.y.*", "3.y.*"]);
    let mapped =
        Membership::Mapped(vec![MemberMapping::new("a", [3, 0]), MemberMapping::new("b", [1, 2])]);
    let mapped = StaticConfig::new(4, mapped).filters(["x.>", "y.*"]);
    // Each once: the list twice over, as one peer writes it, is refused by the server.
    assert_eq!(mapped.partition_filters("a"), ["3.>", "0.>"]);
}

#[test]
fn broken_rules_are_named_all_at_once() {
    let broken = br#"{"max_members":3,"member_mappings":[{"member":"a","partitions":[0,0]},{"member":"a","partitions":[7]}]}"#;
    let error = StaticConfig::from_json(broken).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    for part in [
        "\"a\" is given twice",
        "partition 0 is given twice",
        "partition 7",
        "nobody has partition 1, 2",
    ] {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
    let both =
        br#"{"max_members":1,"members":["a"],"member_mappings":[{"member":"a","partitions":[0]}]}"#;
    assert_eq!(StaticConfig::from_json(both).unwrap_err().kind(), ErrorKind::InvalidConfig);
    assert_eq!(
        StaticConfig::from_json(b"{\"max_members\":0}").unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
    assert_eq!(StaticConfig::from_json(b"").unwrap_err().kind(), ErrorKind::CorruptEntry);
}

#[test]
fn the_hash_is_fnv_1a() {
    // Published vectors of FNV-1a, 32 bit.
    for (text, hash) in [("", 0x811c_9dc5_u32), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
        assert_eq!(partition_of_key([text], 65_521), hash % 65_521);
    }
}
