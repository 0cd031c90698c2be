package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/vmihailenco/msgpack/v5"
)

// codec says how a request and its answer are written into messages.
type codec interface {
	encodeRequest(c *fiber.Ctx) ([]byte, error)
	serve(message []byte) ([]byte, error)
	decodeAnswer(message []byte) ([]byte, error)
}

var codecs = map[string]codec{
	"text":    text{},
	"json":    structured{json.Marshal, json.Unmarshal},
	"msgpack": structured{msgpack.Marshal, msgpack.Unmarshal},
}

// text is what the article measured: a line and the body, and the answer's body alone.
type text struct{}

func (text) encodeRequest(c *fiber.Ctx) ([]byte, error) {
	head := c.Method() + " " + c.OriginalURL() + "\n"
	return append([]byte(head), c.Body()...), nil
}

func (text) serve(message []byte) ([]byte, error) {
	head, body, _ := bytes.Cut(message, []byte("\n"))
	_, path, found := strings.Cut(string(head), " ")
	if !found {
		return nil, fmt.Errorf("%q is no request", head)
	}
	return answer(path, body), nil
}

func (text) decodeAnswer(message []byte) ([]byte, error) {
	return message, nil
}

// structured is what a gateway has to do that passes everything on.
type structured struct {
	marshal   func(any) ([]byte, error)
	unmarshal func([]byte, any) error
}

type request struct {
	Method  string              `json:"method" msgpack:"method"`
	Path    string              `json:"path" msgpack:"path"`
	Headers map[string][]string `json:"headers" msgpack:"headers"`
	Body    []byte              `json:"body" msgpack:"body"`
}

type response struct {
	Status  int                 `json:"status" msgpack:"status"`
	Headers map[string][]string `json:"headers" msgpack:"headers"`
	Body    []byte              `json:"body" msgpack:"body"`
}

func (s structured) encodeRequest(c *fiber.Ctx) ([]byte, error) {
	return s.marshal(request{c.Method(), c.OriginalURL(), c.GetReqHeaders(), c.Body()})
}

func (s structured) serve(message []byte) ([]byte, error) {
	var r request
	if err := s.unmarshal(message, &r); err != nil {
		return nil, err
	}
	headers := map[string][]string{fiber.HeaderContentType: {fiber.MIMEApplicationJSON}}
	return s.marshal(response{fiber.StatusOK, headers, answer(r.Path, r.Body)})
}

func (s structured) decodeAnswer(message []byte) ([]byte, error) {
	var r response
	if err := s.unmarshal(message, &r); err != nil {
		return nil, err
	}
	return r.Body, nil
}
