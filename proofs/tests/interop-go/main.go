// Command interop is one member, or one administrative call, of the Go library; the tests mix it with Rust members.
//
// What the library's generations call differently is in current.go and older.go. Its only argument is a JSON object. Handlers write what they do to a log in the ledger's form.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/pcgroups"
)

type orders struct {
	Do            string   `json:"do"`
	URL           string   `json:"url"`
	Stream        string   `json:"stream"`
	Group         string   `json:"group"`
	Member        string   `json:"member"`
	Members       []string `json:"members"`
	Partitions    uint     `json:"partitions"`
	Filters       []filter `json:"filters"`
	MaxAckPending int      `json:"max_ack_pending"`
	AckWaitMS     int      `json:"ack_wait_ms"`
	WorkMS        int      `json:"work_ms"`
	Log           string   `json:"log"`
	Messages      int      `json:"messages"`
	Work          *work    `json:"work"`
	Vectors       []vector `json:"vectors"`
}

// vector is a group whose distribution is asked for.
type vector struct {
	Partitions uint     `json:"P"`
	Members    []string `json:"Members"`
}

// work is what a handler does before it acknowledges.
type work struct {
	WaitMS int `json:"wait_ms"`
	BusyUS int `json:"busy_us"`
}

type filter struct {
	Filter    string `json:"filter"`
	Wildcards []int  `json:"partitioning_wildcards"`
}

func main() {
	var o orders
	if err := json.Unmarshal([]byte(os.Args[1]), &o); err != nil {
		log.Fatal(err)
	}
	nc, err := nats.Connect(o.URL, nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	answer, err := o.run(context.Background(), js)
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
		log.Fatal(err)
	}
}

func (o orders) run(ctx context.Context, js jetstream.JetStream) (any, error) {
	switch o.Do {
	case "create-elastic":
		return o.createElastic(ctx, js)
	case "create-static":
		return o.createStatic(ctx, js)
	case "get-elastic":
		return pcgroups.GetElasticConsumerGroupConfig(ctx, js, o.Stream, o.Group)
	case "get-static":
		return pcgroups.GetStaticConsumerGroupConfig(ctx, js, o.Stream, o.Group)
	case "add":
		return pcgroups.AddMembers(ctx, js, o.Stream, o.Group, o.Members)
	case "drop":
		return pcgroups.DeleteMembers(ctx, js, o.Stream, o.Group, o.Members)
	case "step-down-elastic":
		return nil, pcgroups.ElasticMemberStepDown(ctx, js, o.Stream, o.Group, o.Member)
	case "active-elastic":
		return pcgroups.ListElasticActiveMembers(ctx, js, o.Stream, o.Group)
	case "bench":
		return o.bench(ctx, js)
	case "partition-filters":
		return o.partitionFilters(), nil
	case "consume-elastic", "consume-static":
		return nil, o.consume(ctx, js)
	}
	return nil, fmt.Errorf("unknown order %q", o.Do)
}

// partitionFilters gives each member's filters, group by group.
func (o orders) partitionFilters() []map[string][]string {
	var answers []map[string][]string
	for _, v := range o.Vectors {
		config := pcgroups.ElasticConsumerGroupConfig{MaxMembers: v.Partitions, Members: v.Members}
		answer := map[string][]string{}
		for _, member := range v.Members {
			answer[member] = pcgroups.ElasticGetPartitionFilters(config, member)
		}
		answers = append(answers, answer)
	}
	return answers
}

func (o orders) consume(ctx context.Context, js jetstream.JetStream) error {
	file, err := os.OpenFile(o.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	run := 0
	handle := func(msg jetstream.Msg) {
		run++
		fmt.Fprintf(file, "B %d %d %s %s\n", time.Now().UnixNano(), run, msg.Subject(), msg.Data())
		time.Sleep(time.Duration(o.WorkMS) * time.Millisecond)
		fmt.Fprintf(file, "S %d %d\n", time.Now().UnixNano(), run)
		fmt.Fprintf(file, "E %d %d\n", time.Now().UnixNano(), run)
		if err := msg.Ack(); err != nil {
			log.Print(err)
		}
	}
	config := jetstream.ConsumerConfig{
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       time.Duration(o.AckWaitMS) * time.Millisecond,
		MaxAckPending: o.MaxAckPending,
	}
	consume := pcgroups.ElasticConsume
	if o.Do == "consume-static" {
		consume = pcgroups.StaticConsume
	}
	member, err := consume(ctx, js, o.Stream, o.Group, o.Member, handle, config)
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	select {
	case err := <-member.Done():
		return err
	case <-stop:
		member.Stop()
		return <-member.Done()
	}
}

// bench handles a number of messages and gives the seconds from the first to the last. With work, it also sees to it
// that each key's messages come in order; one at a time they come anyway, since the library calls one handler after another.
func (o orders) bench(ctx context.Context, js jetstream.JetStream) (any, error) {
	count, faults := 0, 0
	var began time.Time
	var worked time.Duration
	last := map[string]int{}
	done := make(chan float64, 1)
	handle := func(msg jetstream.Msg) {
		if count++; count == 1 {
			began = time.Now()
		}
		if o.Work != nil {
			from := time.Now()
			number, err := strconv.Atoi(strings.TrimSpace(string(msg.Data())))
			if err != nil || number != last[msg.Subject()]+1 {
				faults++
			}
			last[msg.Subject()] = number
			o.Work.carryOut()
			worked += time.Since(from)
		}
		if err := msg.Ack(); err != nil {
			log.Print(err)
		}
		if count == o.Messages {
			done <- time.Since(began).Seconds()
		}
	}
	config := jetstream.ConsumerConfig{
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       time.Duration(o.AckWaitMS) * time.Millisecond,
		MaxAckPending: o.MaxAckPending,
	}
	member, err := pcgroups.StaticConsume(ctx, js, o.Stream, o.Group, o.Member, handle, config)
	if err != nil {
		return nil, err
	}
	defer member.Stop()
	seconds := <-done
	if faults > 0 {
		return nil, fmt.Errorf("%d messages were handled out of order", faults)
	}
	handlerMS := worked.Seconds() * 1e3 / float64(o.Messages)
	return map[string]float64{"seconds": seconds, "handler_ms": handlerMS}, nil
}

func (w work) carryOut() {
	time.Sleep(time.Duration(w.WaitMS) * time.Millisecond)
	for began := time.Now(); time.Since(began) < time.Duration(w.BusyUS)*time.Microsecond; {
	}
}
