//go:build older

package main

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/pcgroups"
)

// The older generation has one filter for each group.
func (o orders) createElastic(ctx context.Context, js jetstream.JetStream) (any, error) {
	only := o.Filters[0]
	return pcgroups.CreateElastic(ctx, js, o.Stream, o.Group, o.Partitions, only.Filter, only.Wildcards, 0, 0)
}

func (o orders) createStatic(ctx context.Context, js jetstream.JetStream) (any, error) {
	return pcgroups.CreateStatic(ctx, js, o.Stream, o.Group, o.Partitions, "", o.Members, nil)
}
