package httpd

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/dialring/dialring/internal/wire"
)

// ReadBody reads a request's body of at most limit bytes.
func ReadBody(r *http.Request, limit int) ([]byte, *wire.Problem) {
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return nil, wire.NewProblem(http.StatusUnsupportedMediaType, wire.CodeInvalidRequest, "send the body without Content-Encoding")
	}
	tooLarge := func() *wire.Problem {
		return wire.NewProblem(http.StatusRequestEntityTooLarge, wire.CodeTooLarge, "the body has more than %d bytes", limit)
	}
	if r.ContentLength > int64(limit) {
		return nil, tooLarge()
	}
	if r.ContentLength == 0 {
		return nil, nil
	}
	if r.ContentLength > 0 {
		b := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, b); err != nil {
			return nil, wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "the body ended early")
		}
		return b, nil
	}
	b, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, int64(limit)))
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return nil, tooLarge()
	case err != nil:
		return nil, wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "the body cannot be read")
	}
	return b, nil
}

// Bearer returns the bearer token of a request that has exactly one
// Authorization header.
func Bearer(r *http.Request) (string, bool) {
	h := r.Header["Authorization"]
	if len(h) != 1 {
		return "", false
	}
	scheme, rest, ok := strings.Cut(h[0], " ")
	return strings.TrimSpace(rest), ok && strings.EqualFold(scheme, "Bearer")
}

// jsonType is shared by all answers: net/http only reads it.
var jsonType = []string{"application/json"}

// JSON answers 200 with a body that is JSON already. net/http adds the length
// by itself as long as the body fits its buffer.
func JSON(w http.ResponseWriter, b []byte) error {
	h := w.Header()
	h["Content-Type"] = jsonType
	if len(b) >= 2048 {
		h.Set("Content-Length", strconv.Itoa(len(b)))
	}
	_, err := w.Write(b)
	return err
}
