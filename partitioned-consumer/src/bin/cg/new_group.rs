//! The configuration of a new group: from the command line, and from answers where something is
//! missing.

use anyhow::Result;
use natsway_partitioned_consumer::{ElasticConfig, MemberMapping, Membership, StaticConfig};

use crate::args::{NewElastic, NewStatic};
use crate::ask::answer;
use crate::failure::Mistake;

/// Members and filters as given.
pub(crate) fn static_config(new: &NewStatic, mapped: bool) -> Result<StaticConfig> {
    // A wildcard can be no member's name; the published walk-through gives the filter there.
    let is_filter = |argument: &&String| argument.contains(['*', '>']);
    let filters = new.filters.iter().chain(new.members.iter().filter(is_filter));
    let members: Vec<String> = new.members.iter().filter(|m| !is_filter(m)).cloned().collect();
    if members.is_empty() {
        let one = if mapped { "member:0,1,2" } else { "name" };
        return Err(Mistake(format!("no member given: expected at least one {one}")).into());
    }
    let membership = if mapped {
        Membership::Mapped(mappings(&members)?)
    } else {
        Membership::balanced(members)
    };
    // `>` takes everything, which is what no filter means, too.
    let filters: Vec<String> = filters.filter(|filter| *filter != ">").cloned().collect();
    Ok(StaticConfig::new(new.max_members, membership).filters(filters))
}

/// Filters and their wildcards as given; what is missing is asked for.
pub(crate) fn elastic_config(new: &NewElastic) -> Result<ElasticConfig> {
    let mut config = ElasticConfig::new(new.max_members)
        .max_buffered_messages(new.max_buffered_msgs)
        .max_buffered_bytes(new.max_buffered_bytes);
    if new.wildcards.len() > new.filters.len() {
        let (indexes, filters) = (new.wildcards.len(), new.filters.len());
        let text = format!(
            "--wildcards: {indexes} given for {filters} --filter: expected at most one each"
        );
        return Err(Mistake(text).into());
    }
    let mut given = new.wildcards.iter();
    for filter in &new.filters {
        let indexes = match given.next() {
            Some(indexes) => parse_indexes(indexes)?,
            None => ask_indexes(filter)?,
        };
        config = config.filter(filter, indexes);
    }
    let mut nobody = "no --filter is given, and nobody is there to ask: give --filter and \
                      --wildcards, or --filter '>' --wildcards '' to take everything by its whole \
                      subject";
    while new.filters.is_empty() {
        let question = "filter to partition by (empty line for no more)";
        let Some(filter) = answer(question, nobody)? else { break };
        nobody = "";
        let indexes = ask_indexes(&filter)?;
        config = config.filter(filter, indexes);
    }
    Ok(config)
}

fn ask_indexes(filter: &str) -> Result<Vec<u32>> {
    // Without a `*` the whole subject is all that there is.
    if !filter.split('.').any(|token| token == "*") {
        return Ok(Vec::new());
    }
    let question = format!(
        "wildcards of {filter} that make up the key, as 1 2 (empty line for the whole subject)"
    );
    let nobody = format!(
        "no --wildcards are given for {filter}, and nobody is there to ask: give --wildcards 1, \
         say, or --wildcards '' for the whole subject"
    );
    parse_indexes(&answer(&question, &nobody)?.unwrap_or_default())
}

fn parse_indexes(text: &str) -> Result<Vec<u32>> {
    let parts = text.split([' ', ',']).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            part.parse().map_err(|_| {
                Mistake(format!("wildcard index {part:?}: expected a number from 1")).into()
            })
        })
        .collect()
}

/// Reads `member:0,1,2`.
pub(crate) fn mappings(texts: &[String]) -> Result<Vec<MemberMapping>> {
    let parse = |text: &String| {
        let expected = format!("mapping {text:?}: expected member:0,1,2");
        let Some((member, partitions)) = text.split_once(':') else {
            return Err(Mistake(expected).into());
        };
        let partitions: Result<Vec<u32>, _> = partitions.split(',').map(str::parse).collect();
        let partitions = partitions.map_err(|error| Mistake(format!("{expected}: {error}")))?;
        Ok(MemberMapping::new(member, partitions))
    };
    texts.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Group as Names;

    fn new(members: &[&str]) -> NewStatic {
        let group = Names { stream: "foo".into(), group: "cg".into() };
        NewStatic {
            group,
            max_members: 3,
            members: members.iter().map(ToString::to_string).collect(),
            filters: Vec::new(),
        }
    }

    #[test]
    fn a_wildcard_among_the_members_is_a_filter() {
        let config = static_config(&new(&[">", "m1", "m2"]), false).unwrap();
        assert_eq!(config, StaticConfig::new(3, Membership::balanced(["m1", "m2"])));
        let config = static_config(&new(&["foo.*", "m1"]), false).unwrap();
        assert_eq!(config.filters, ["foo.*"]);
        assert!(static_config(&new(&[">"]), false).is_err());
    }

    #[test]
    fn mappings_say_what_is_wrong_with_them() {
        let config = static_config(&new(&["m1:0,2", "m2:1"]), true).unwrap();
        assert_eq!(config.partition_filters("m1"), ["0.>", "2.>"]);
        let error = static_config(&new(&["m1:0,x"]), true).unwrap_err();
        assert!(error.to_string().contains("\"m1:0,x\": expected member:0,1,2"), "{error}");
    }
}
