package wire

import (
	"fmt"
	"net/http"
)

// ProblemType is the media type of a problem document (RFC 9457).
const ProblemType = "application/problem+json"

// Code is the stable, machine-readable part of a problem.
type Code string

const (
	CodeInvalidRequest   Code = "invalid_request"
	CodeUnauthorized     Code = "unauthorized"
	CodeForbidden        Code = "forbidden"
	CodeNotFound         Code = "not_found"
	CodeTooLarge         Code = "too_large"
	CodeRateLimited      Code = "rate_limited"
	CodeNoNodes          Code = "no_nodes"
	CodeOwnerUnreachable Code = "owner_unreachable"
	CodeStoreUnavailable Code = "store_unavailable"
	CodeMisdirected      Code = "misdirected"
	CodeDraining         Code = "draining"
	CodeKeyReused        Code = "key_reused"
	CodeTooManySessions  Code = "too_many_sessions"
	CodeMethodNotAllowed Code = "method_not_allowed"
	CodeNoApplication    Code = "no_application"
	CodeInternal         Code = "internal"
)

// Problem is an error that a caller is told, as an RFC 9457 document.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Code   Code   `json:"code"`
	Detail string `json:"detail,omitempty"`

	// RetryAfter, in seconds, is sent as the header of that name; 0: none.
	RetryAfter int `json:"-"`
	// Header holds further response headers, name and value in turn.
	Header [2]string `json:"-"`
}

// NewProblem makes a problem of an HTTP status, a code and a detail that says
// what is wrong and what to do. A 429 or 503 tells the caller to wait a second.
func NewProblem(status int, code Code, format string, args ...any) *Problem {
	detail := format
	if len(args) > 0 {
		detail = fmt.Sprintf(format, args...)
	}
	title := http.StatusText(status)
	if title == "" {
		title = "Error"
	}
	p := &Problem{Type: "about:blank", Title: title, Status: status, Code: code, Detail: detail}
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		p.RetryAfter = 1
	}
	return p
}

// Error makes a Problem an error.
func (p *Problem) Error() string {
	return fmt.Sprintf("%d %s: %s", p.Status, p.Code, p.Detail)
}
