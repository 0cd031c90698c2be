// Uploads what the server refuses, over and over, with Go's own client, and counts how often it gets to read why.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
)

func upload(url string, body []byte) (string, error) {
	// A connection each, as it ends with the refusal.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Post(url, "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if _, err := io.ReadAll(response.Body); err != nil {
		return "", err
	}
	return strconv.Itoa(response.StatusCode), nil
}

func main() {
	runs, _ := strconv.Atoi(os.Args[2])
	size, _ := strconv.Atoi(os.Args[3])
	body := bytes.Repeat([]byte("x"), size)
	outcomes := map[string]int{}
	for range runs {
		outcome, err := upload(os.Args[1], body)
		if err != nil {
			outcome = err.Error()
		}
		outcomes[outcome]++
	}
	line, _ := json.Marshal(map[string]any{"client": "go net/http", "outcomes": outcomes})
	fmt.Println(string(line))
}
