//go:build !older

package main

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/pcgroups"
)

func (o orders) createElastic(ctx context.Context, js jetstream.JetStream) (any, error) {
	var filters []pcgroups.PartitioningFilter
	for _, f := range o.Filters {
		filters = append(filters, pcgroups.PartitioningFilter{Filter: f.Filter, PartitioningWildcards: f.Wildcards})
	}
	return pcgroups.CreateElastic(ctx, js, o.Stream, o.Group, o.Partitions, filters, 0, 0)
}

func (o orders) createStatic(ctx context.Context, js jetstream.JetStream) (any, error) {
	return pcgroups.CreateStatic(ctx, js, o.Stream, o.Group, o.Partitions, nil, o.Members, nil)
}
