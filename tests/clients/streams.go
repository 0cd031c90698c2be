// Go's net/http: a body up and down at once, and one in each direction.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
)

func pattern(length int) []byte {
	body := make([]byte, length)
	for at := range body {
		body[at] = byte(at % 251)
	}
	return body
}

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func check(is bool, what string) {
	if !is {
		must(fmt.Errorf("%s", what))
	}
}

func main() {
	base := os.Args[1]
	length, err := strconv.Atoi(os.Args[2])
	must(err)
	body := pattern(length)
	expected := fmt.Sprintf("%x", sha256.Sum256(body))

	// A reader that is no buffer is sent in chunks.
	answer, err := http.Post(base+"/hash", "application/octet-stream", io.LimitReader(bytes.NewReader(body), int64(length)))
	must(err)
	var sum struct{ Sha256 string }
	must(json.NewDecoder(answer.Body).Decode(&sum))
	check(sum.Sha256 == expected, "up: another hash")

	answer, err = http.Get(fmt.Sprintf("%s/pattern?bytes=%d", base, length))
	must(err)
	came, err := io.ReadAll(answer.Body)
	must(err)
	check(bytes.Equal(came, body), "down: another body")

	// Each piece comes back before the next one is sent.
	reader, writer := io.Pipe()
	done := make(chan *http.Response)
	go func() {
		answer, err := http.Post(base+"/back", "application/octet-stream", reader)
		must(err)
		done <- answer
	}()
	piece := body[:100_000]
	_, err = writer.Write(piece)
	must(err)
	answer = <-done
	for round := 0; round < 20; round++ {
		back := make([]byte, len(piece))
		_, err = io.ReadFull(answer.Body, back)
		must(err)
		check(bytes.Equal(back, piece), "both: another piece")
		_, err = writer.Write(piece)
		must(err)
	}
	must(writer.Close())
	rest, err := io.ReadAll(answer.Body)
	must(err)
	check(bytes.Equal(rest, piece), "both: another end")
	fmt.Println("up, down, both at once")
}
