package main

import (
	"context"
	"log"
	"sync/atomic"

	"github.com/gofiber/fiber/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

// gateway sends each request to a worker and gives back its answer.
func gateway(o options) error {
	pool := make([]*nats.Conn, 0, o.connections)
	for range o.connections {
		conn, err := nats.Connect(o.url)
		if err != nil {
			return err
		}
		pool = append(pool, conn)
	}
	var turn atomic.Uint64
	return listen(o.listen, func(c *fiber.Ctx) ([]byte, error) {
		message, err := o.codec.encodeRequest(c)
		if err != nil {
			return nil, err
		}
		conn := pool[turn.Add(1)%uint64(len(pool))]
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		reply, err := conn.RequestWithContext(ctx, subject, message)
		if err != nil {
			return nil, err
		}
		return o.codec.decodeAnswer(reply.Data)
	})
}

// worker answers until the process is killed.
func worker(o options) error {
	conn, err := nats.Connect(o.url)
	if err != nil {
		return err
	}
	respond := func(m *nats.Msg) {
		reply, err := o.codec.serve(m.Data)
		if err == nil {
			err = m.Respond(reply)
		}
		if err != nil {
			log.Print(err)
		}
	}
	if o.synchronous {
		return fetch(conn, o.broadcast, respond)
	}
	if o.broadcast {
		_, err = conn.Subscribe(subject, respond)
	} else {
		_, err = conn.QueueSubscribe(subject, queue, respond)
	}
	if err != nil {
		return err
	}
	select {}
}

// fetch takes one message after the other, as the article's first form does.
func fetch(conn *nats.Conn, broadcast bool, respond func(*nats.Msg)) error {
	subscribe := func() (*nats.Subscription, error) { return conn.QueueSubscribeSync(subject, queue) }
	if broadcast {
		subscribe = func() (*nats.Subscription, error) { return conn.SubscribeSync(subject) }
	}
	subscription, err := subscribe()
	if err != nil {
		return err
	}
	for {
		message, err := subscription.NextMsgWithContext(context.Background())
		if err != nil {
			return err
		}
		respond(message)
	}
}

// microService answers our gateway's native codec: raw bodies, and the path in a header.
func microService(o options) error {
	conn, err := nats.Connect(o.url)
	if err != nil {
		return err
	}
	handle := func(request micro.Request) {
		headers := micro.Headers{fiber.HeaderContentType: {fiber.MIMEApplicationJSON}}
		body := answer(request.Headers().Get("Natsway-Path"), request.Data())
		if err := request.Respond(body, micro.WithHeaders(headers)); err != nil {
			log.Print(err)
		}
	}
	_, err = micro.AddService(conn, micro.Config{
		Name:     "bench",
		Version:  "1.0.0",
		Endpoint: &micro.EndpointConfig{Subject: o.subject, QueueGroup: queue, Handler: micro.HandlerFunc(handle)},
	})
	if err != nil {
		return err
	}
	select {}
}
