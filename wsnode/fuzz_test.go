package wsnode

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

const fuzzKey = "dGhlIHNhbXBsZSBub25jZQ=="

// FuzzHandshake has any bytes as a request to the node's public listener; TICKET in them
// is a ticket that is good. The answer is one of the contract's, an upgrade is one that
// RFC 6455, 4.2, allows, and a ticket is accepted once.
func FuzzHandshake(f *testing.F) {
	request := func(edit ...string) string {
		return strings.NewReplacer(edit...).Replace("GET /v1/ws HTTP/1.1\r\nHost: node.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
			"Sec-WebSocket-Key: " + fuzzKey + "\r\nSec-WebSocket-Protocol: dialring.v1, dialring.ticket.TICKET\r\n\r\n")
	}
	for _, edit := range [][]string{nil, {"GET", "POST"}, {"13", "8"}, {"13", "13, 8"}, {"Version: 13\r\n", "\r\n"}, {"HTTP/1.1", "HTTP/1.0"}, {"HTTP/1.1", "HTTP/2.0"}, {"Upgrade\r\n", "keep-alive\r\nConnection: upgrade\r\n"},
		{"websocket", "h2c, WebSocket"}, {"Host: node.test\r\n", ""}, {"/v1/ws", "http://node.test/v1/ws?since=0"}, {"/v1/ws", "/v1/ws?since=%zz"}, {fuzzKey, "AAAA"}, {"dialring.v1,", ""},
		{", dialring.ticket.TICKET", "\r\nAuthorization: Bearer TICKET"}, {"TICKET", "TICKET\r\nAuthorization: Bearer TICKET"}, {"TICKET", "x"}, {"TICKET", ""}, {"\r\n\r\n", "\r\nOrigin: https://evil.test\r\n\r\n"},
		{"\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"}, {"\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}, {"\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n"}, {"\r\n\r\n", "\r\n"},
		{"/v1/ws", "/healthz"}, {"/v1/ws", "/"}, {"/v1/ws", "*"}, {"GET /v1/ws", "CONNECT node.test:80"}, {"GET", "HEAD"}, {"GET", "OPTIONS"}, {"Upgrade: websocket", "Upgrade:\r\n websocket"}, {"\r\n\r\n", "\r\n\r\n\x89\x80\x00\x00\x00\x00"}} {
		f.Add(request(edit...))
	}
	f.Add("")
	f.Add("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") // TLS
	n := newFuzzNode(f)
	dial := n.serve(f)
	ask := func(t *testing.T, input string) *http.Response {
		c := dial()
		defer c.Close()
		wrote := make(chan struct{})
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(input)))
		partial := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(input, "\n\r\n") && !strings.Contains(input, "\n\n")
		if err == nil { // net/http waits for the rest of a body before it answers, up to its time limit
			_, err = io.Copy(io.Discard, req.Body)
			partial = partial || err != nil
		}
		go func() {
			defer close(wrote)
			if _, err := io.WriteString(c, input); partial && err == nil {
				_ = c.Close() // nothing else comes
			}
		}()
		defer func() {
			_ = c.Close()
			<-wrote
		}()
		br := bufio.NewReader(c)
		for {
			resp, err := http.ReadResponse(br, req)
			if err != nil {
				if !partial {
					t.Fatalf("%q is not answered: %v", input, err)
				}
				return nil
			}
			if resp.StatusCode == http.StatusContinue {
				continue
			}
			if resp.StatusCode == http.StatusSwitchingProtocols {
				return resp
			}
			b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			if err != nil && partial { // this end has been closed
				return nil
			}
			if err != nil {
				t.Fatalf("the answer to %q: %v", input, err)
			}
			resp.Body = io.NopCloser(bytes.NewReader(b))
			return resp
		}
	}
	f.Fuzz(func(t *testing.T, input string) {
		if len(input) > 8<<10 || strings.Contains(input, "PRI ") { // net/http waits for the rest of HTTP/2's preface, up to its time limit
			return
		}
		ticket := n.ticket()
		input = strings.ReplaceAll(input, "TICKET", ticket)
		defer n.over(t)
		resp := ask(t, input)
		if resp == nil {
			return
		}
		fuzzAnswer(t, resp, input, ticket)
		if resp.StatusCode == http.StatusSwitchingProtocols {
			n.readers.Wait()
			if again := ask(t, input); again == nil || again.StatusCode != http.StatusUnauthorized {
				t.Fatalf("%q a second time: %v", input, again)
			}
		}
	})
}

// fuzzAnswer judges an answer to the request in input.
func fuzzAnswer(t *testing.T, resp *http.Response, input, ticket string) {
	t.Helper()
	var b []byte
	if resp.Body != nil && resp.StatusCode != http.StatusSwitchingProtocols {
		b, _ = io.ReadAll(resp.Body)
	}
	for _, v := range resp.Header {
		if strings.Contains(strings.Join(v, ""), ticket) || bytes.Contains(b, []byte(ticket)) {
			t.Fatalf("the answer to %q has the ticket: %v %s", input, v, b)
		}
	}
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(input)))
	switch resp.StatusCode {
	case http.StatusSwitchingProtocols:
		if err != nil {
			t.Fatalf("%q is upgraded: %v", input, err)
		}
		list := func(name string) (out []string) {
			for _, v := range req.Header.Values(name) {
				for _, x := range strings.Split(v, ",") {
					out = append(out, strings.Trim(x, " \t"))
				}
			}
			return out
		}
		has := func(name, token string) bool {
			return slices.ContainsFunc(list(name), func(s string) bool { return strings.EqualFold(s, token) })
		}
		key := req.Header.Values("Sec-WebSocket-Key")
		switch {
		case req.Method != "GET" || req.URL.Path != pathWS || req.Proto < "HTTP/1.1" || req.Host == "":
		case !has("Connection", "Upgrade") || !has("Upgrade", "websocket") || !slices.Equal(req.Header.Values("Sec-WebSocket-Version"), []string{"13"}) || len(key) != 1:
		case !slices.Contains(list("Sec-WebSocket-Protocol"), "dialring.v1") || !strings.Contains(input, ticket) || len(req.Header.Values("Origin")) > 0:
		case req.ContentLength > 0 || len(req.TransferEncoding) > 0:
		default:
			raw, err := base64.StdEncoding.DecodeString(key[0])
			sum := sha1.Sum([]byte(key[0] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
			if err != nil || len(raw) != 16 || resp.Header.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) ||
				!slices.Equal(resp.Header.Values("Sec-WebSocket-Protocol"), []string{"dialring.v1"}) || resp.Header.Get("Sec-WebSocket-Extensions") != "" {
				t.Fatalf("%q is answered with %v", input, resp.Header)
			}
			return
		}
		t.Fatalf("%q is upgraded", input)
	case 400, 401, 403, 404, 405, 426, 503:
		if resp.Header.Get("Content-Type") == wire.ProblemType {
			var p wire.Problem
			if req != nil && req.Method == "HEAD" {
				return
			}
			if err := json.Unmarshal(b, &p); err != nil || p.Status != resp.StatusCode || p.Code == "" || p.Detail == "" {
				t.Fatalf("%q is answered with %d %s", input, resp.StatusCode, b)
			}
			return
		}
		if req != nil && req.URL.Path == "/readyz" {
			return
		}
		if resp.StatusCode == 400 && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") { // net/http's own
			return
		}
	case 200:
		if req != nil && (req.URL.Path == "/healthz" || req.Method == "OPTIONS") {
			return
		}
	case 204: // the methods of a path, which echo lists
		if req != nil && req.Method == "OPTIONS" {
			return
		}
	case 417, 431, 501, 505: // net/http's own
		return
	}
	t.Fatalf("%q is answered with %d %v %s", input, resp.StatusCode, resp.Header, b)
}
