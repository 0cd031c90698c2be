// The article's arrangement in Go, to compare with: an HTTP server (fiber) that turns each request into a NATS
// request, and a worker that answers from a queue group. One program with four roles; the last one is a service of
// NATS's own API, as a backend of our gateway.
package main

import (
	"flag"
	"log"
	"os"
	"strconv"
	"strings"
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

// options are what the command line says; each role reads what concerns it.
type options struct {
	listen      string
	url         string
	subject     string
	connections int
	codec       codec
	broadcast   bool
	synchronous bool
}

func main() {
	if len(os.Args) < 2 {
		log.Fatal("expected a role: direct, gateway, worker or micro")
	}
	role := os.Args[1]
	options := parse(role, os.Args[2:])
	var err error
	switch role {
	case "direct":
		err = listen(options.listen, func(c *fiber.Ctx) ([]byte, error) {
			return answer(c.Path(), c.Body()), nil
		})
	case "gateway":
		err = gateway(options)
	case "worker":
		err = worker(options)
	case "micro":
		err = microService(options)
	default:
		log.Fatalf("unknown role %q", role)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func parse(role string, arguments []string) options {
	var o options
	flags := flag.NewFlagSet(role, flag.ExitOnError)
	flags.StringVar(&o.listen, "listen", "127.0.0.1:8080", "where clients connect")
	flags.StringVar(&o.url, "nats", nats.DefaultURL, "the broker")
	flags.StringVar(&o.subject, "subject", subject, "what the micro service answers")
	flags.IntVar(&o.connections, "connections", 1, "broker connections of the gateway, used in turn")
	flags.BoolVar(&o.broadcast, "broadcast", false, "every worker gets every request")
	flags.BoolVar(&o.synchronous, "sync", false, "the worker fetches one message after the other")
	name := flags.String("codec", "text", "text, json or msgpack")
	if err := flags.Parse(arguments); err != nil {
		log.Fatal(err)
	}
	codec, known := codecs[*name]
	if !known {
		log.Fatalf("unknown codec %q", *name)
	}
	o.codec = codec
	return o
}

// answer is the service: what our own says to the same paths.
func answer(path string, body []byte) []byte {
	if path == "/echo" {
		return body
	}
	if digits, found := strings.CutPrefix(path, "/bytes/"); found {
		if count, err := strconv.Atoi(digits); err == nil && count >= 0 && count <= 16<<20 {
			return []byte(strings.Repeat("x", count))
		}
	}
	return []byte(greeting)
}

// listen answers every HTTP request with what the handler gives.
func listen(address string, handle func(*fiber.Ctx) ([]byte, error)) error {
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	app.All("/*", func(c *fiber.Ctx) error {
		body, err := handle(c)
		if err != nil {
			return c.Status(fiber.StatusServiceUnavailable).SendString(err.Error())
		}
		c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
		return c.Send(body)
	})
	return app.Listen(address)
}
