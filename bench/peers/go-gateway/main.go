// The article's arrangement in Go, to compare with: an HTTP server (fiber) that turns each request into a NATS
// request, and a worker that answers from a queue group. One program with three roles.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"sync/atomic"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/nats-io/nats.go"
)

const (
	greeting = `{"service":"demo","message":"it works"}`
	subject  = "svc.go"
	queue    = "q"
	timeout  = 5 * time.Second
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("expected a role: direct, gateway or worker")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:8080", "where clients connect")
	url := flags.String("nats", nats.DefaultURL, "the broker")
	connections := flags.Int("connections", 1, "broker connections of the gateway, used in turn")
	if err := flags.Parse(os.Args[2:]); err != nil {
		log.Fatal(err)
	}
	var err error
	switch os.Args[1] {
	case "direct":
		err = serve(*listen, func(*fiber.Ctx) ([]byte, error) { return []byte(greeting), nil })
	case "gateway":
		err = gateway(*listen, *url, *connections)
	case "worker":
		err = worker(*url)
	default:
		log.Fatalf("unknown role %q", os.Args[1])
	}
	if err != nil {
		log.Fatal(err)
	}
}

// serve answers every request with what the handler gives.
func serve(listen string, handle func(*fiber.Ctx) ([]byte, error)) error {
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	app.All("/*", func(c *fiber.Ctx) error {
		body, err := handle(c)
		if err != nil {
			return c.Status(fiber.StatusServiceUnavailable).SendString(err.Error())
		}
		c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
		return c.Send(body)
	})
	return app.Listen(listen)
}

// gateway sends method and path to a worker and gives back its answer.
func gateway(listen, url string, connections int) error {
	pool := make([]*nats.Conn, 0, connections)
	for range connections {
		conn, err := nats.Connect(url)
		if err != nil {
			return err
		}
		pool = append(pool, conn)
	}
	var turn atomic.Uint64
	return serve(listen, func(c *fiber.Ctx) ([]byte, error) {
		conn := pool[turn.Add(1)%uint64(len(pool))]
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		reply, err := conn.RequestWithContext(ctx, subject, []byte(c.Method()+" "+c.OriginalURL()))
		if err != nil {
			return nil, err
		}
		return reply.Data, nil
	})
}

// worker answers until the process is killed.
func worker(url string) error {
	conn, err := nats.Connect(url)
	if err != nil {
		return err
	}
	_, err = conn.QueueSubscribe(subject, queue, func(m *nats.Msg) {
		if err := m.Respond([]byte(greeting)); err != nil {
			log.Print(err)
		}
	})
	if err != nil {
		return err
	}
	select {}
}
