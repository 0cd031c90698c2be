// A hello in Go, and a body of any length: `bench apps` puts it behind nginx and behind the sidecar.
package main

import (
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
)

const hello = "{\"hello\":\"from an app that knows nothing\"}"

var piece = make([]byte, 64<<10)

func stream(w http.ResponseWriter, r *http.Request) {
	left, err := strconv.ParseInt(r.PathValue("bytes"), 10, 64)
	if err != nil {
		http.Error(w, "bytes", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
	for left > 0 {
		length := min(left, int64(len(piece)))
		if _, err := w.Write(piece[:length]); err != nil {
			return
		}
		left -= length
	}
}

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, hello)
	})
	mux.HandleFunc("GET /stream/{bytes}", stream)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), mux))
}
