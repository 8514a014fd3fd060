// Package js has the JavaScript SDK for programs that serve it to their pages. Others
// take it from npm, as @dialring/client.
package js

import (
	_ "embed"
	"net/http"
)

// Source is dialring.js: one ES module that imports nothing.
//
//go:embed dialring.js
var Source string

// Handler serves Source.
func Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
		_, _ = w.Write([]byte(Source)) // the browser has gone: nobody to tell
	})
}
