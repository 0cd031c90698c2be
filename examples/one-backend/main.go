// go run .
package main

import (
	"encoding/json"
	"os"

	"github.com/nats-io/nats.go"
)

type object map[string]any

func hello(message *nats.Msg) {
	args, reply := object{}, object{"_reply": object{"status": 400}, "body": object{"error": "who are you?"}}
	if json.Unmarshal(message.Data, &args); args["name"] != nil {
		reply = object{"hello": args["name"]}
	}
	data, _ := json.Marshal(reply)
	message.Respond(data)
}

func main() {
	url := os.Getenv("NATS_URL")
	if url == "" {
		url = nats.DefaultURL
	}
	client, err := nats.Connect(url)
	if err != nil {
		panic(err)
	}
	client.QueueSubscribe("svc.hello.v1", "q", hello)
	select {}
}
