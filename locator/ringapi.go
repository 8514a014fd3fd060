package locator

import (
	"encoding/json"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/wire"
)

// getRing: GET /v1/ring, the ring as this locator sees it.
func (l *Locator) getRing(c echo.Context) error {
	cur := l.rings.Current()
	b, err := json.Marshal(wire.RingResponse{Cluster: l.cfg.Cluster, Epoch: cur.Epoch, Hash: cur.Hash,
		Nodes: l.keeper.View(cur), Handoffs: []json.RawMessage{}})
	if err != nil {
		return err
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	return httpd.JSON(c.Response(), b)
}
