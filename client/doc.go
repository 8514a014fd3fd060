// Package client is the Go SDK of dialring, for apps and for services.
//
// An app receives with a [Client]: it asks a locator which node owns its user,
// connects there, and hands each message to a function. It reconnects by
// itself, for as long as its context lives, with the back-off that the locators
// and nodes ask for. A service sends with a [Pusher], through any locator.
//
// Both need nothing but HTTP and WebSocket. The package depends on lxzan/gws
// and the standard library.
package client
