// The types of docker/observability/dashboard.json, by Grafana's schema. `dashboard.rs` appends the dashboard and compiles both.

import type * as schema from '@grafana/schema';
import type * as bargauge from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type * as heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as timeline from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

/** A type as JSON has it: with the values of enums instead of their names. */
type Json<T> = T extends string ? `${T}`
  : T extends number | boolean | null | undefined ? T
  : T extends (infer U)[] ? Json<U>[]
  : { [K in keyof T]: Json<T[K]> };

/** A query of Prometheus. The package has no type for it: each data source has its own. */
interface Query {
  refId: string;
  datasource: schema.DataSourceRef;
  editorMode: 'code';
  expr: string;
  legendFormat: string;
  format: 'time_series' | 'table' | 'heatmap';
  instant: boolean;
  range: boolean;
}

/** What the data source reads of an annotation beside its query. */
interface Annotation extends schema.AnnotationQuery<Query> {
  titleFormat: string;
  textFormat: string;
}

/** A panel of one kind, with the options of that kind. */
interface Of<Kind extends string, Options, Custom = never>
  extends Omit<schema.Panel, 'type' | 'options' | 'fieldConfig' | 'targets'> {
  type: Kind;
  options: Options;
  fieldConfig: Omit<schema.FieldConfigSource, 'defaults'> & { defaults: Omit<schema.FieldConfig, 'custom'> & { custom?: Custom } };
  targets: Query[];
}

type Panel =
  | schema.RowPanel
  | Of<'bargauge', bargauge.Options>
  | Of<'heatmap', heatmap.Options, heatmap.FieldConfig>
  | Of<'stat', stat.Options>
  | Of<'state-timeline', timeline.Options, timeline.FieldConfig>
  | Of<'table', table.Options, table.FieldConfig>
  | Of<'timeseries', timeseries.Options, timeseries.FieldConfig>;

type Dashboard = Json<Omit<schema.Dashboard, 'annotations' | 'panels'> & { annotations: { list: Annotation[] }; panels: Panel[] }>;
